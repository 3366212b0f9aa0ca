"""Modes in which torch runs the code of a layer: evaluation, eager, transformed, traced, compiled or exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# Up to torch 2.11 every graph that Dynamo makes says that it is being exported (pytorch issue 176347). There programs
# that are exported with strict=True have operators of ours; those of the default go past Dynamo.
_KNOWS_EXPORT = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 12)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Set evaluation mode; each module gets its own mode back on exit."""
    modes = {part: part.training for part in module.modules()}
    try:
        module.eval()
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def in_transform() -> bool:
    """Return whether torch.func or forward-mode differentiation carries derivatives or batches along.

    Tensors then look plain and stand for others: no value may be cached or read, results cannot be written into given
    memory, vmap knows one memory format, and fused kernels lack rules.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def in_graph(x: Tensor) -> bool:
    """Return whether ``x`` is traced or stands for another tensor, so that no value of it may be cached."""
    return (
        torch.compiler.is_compiling()
        or bool(torch._C._get_tracing_state())
        or in_transform()
        or type(x) not in (Tensor, nn.Parameter)
    )


def in_compiler() -> bool:
    """Return whether torch.compile makes a graph, which may call custom operators.

    Not an exported one: programs of torch.export hold torch's own operators alone.
    """
    return torch.compiler.is_dynamo_compiling() and not (_KNOWS_EXPORT and torch.compiler.is_exporting())


def known(condition: bool) -> bool:
    """Return whether a condition on sizes holds; while a graph for dynamic sizes is traced, whether it always does.

    Asked in this way, a condition that depends on the size does not specialise the graph.
    """
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(condition)
    return bool(condition)


def is_dynamic(length: int) -> bool:
    """Return whether a length may differ at the next call of the graph that torch.compile makes."""
    if in_compiler():
        from torch.fx.experimental.symbolic_shapes import has_static_value

        return not has_static_value(length)
    return False
