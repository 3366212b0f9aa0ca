"""Sizes: one number or two, and the arithmetic of padding."""

from __future__ import annotations

import torch
from torch import Tensor

from vitrail.errors import ConfigError

Size = int | tuple[int, int]

# Up to torch 2.11 every graph that Dynamo makes says that it is being exported (pytorch issue 176347). There programs
# that are exported with strict=True have operators of ours; those of the default go past Dynamo.
_KNOWS_EXPORT = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 12)

# Of operators that keep tensors for the next call: a CUDA graph must not record these, which are no part of its memory.
KEEPS_TENSORS = (torch.Tag.cudagraph_unsafe,)


def to_pair(size: int | tuple[int, int] | list[int], name: str = "size") -> tuple[int, int]:
    """Read a size as height and width.

    Args:
        size: One number for both, or ``(height, width)``.
        name: The setting's name, for the error.

    Raises:
        ConfigError: Not one or two positive whole numbers.
    """
    values = list(size) if isinstance(size, list | tuple) else [size, size]
    if len(values) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values):
        raise ConfigError(f"{name} must be a positive whole number or a pair of them (height, width), got {size!r}")
    return values[0], values[1]


def divide_up(length: int, by: int) -> int:
    """The quotient rounded up, for lengths of 0 and more.

    A compiler for changing sizes sees of this form, and not of others, that it is positive for every length, and
    simplifies it where it is divided again.
    """
    return (length - 1) // by + 1


def padding_to_multiple(length: int, multiple: int) -> int:
    """How much to append to ``length`` so that it becomes a multiple of ``multiple``; 0 when it is one."""
    return divide_up(length, multiple) * multiple - length


def in_compiler() -> bool:
    """Whether torch.compile is making a graph, which may call operators of ours.

    Not one that is exported: what serves that must be written in torch's own operators.
    """
    return torch.compiler.is_dynamo_compiling() and not (_KNOWS_EXPORT and torch.compiler.is_exporting())


def compiled_on_cpu(x: Tensor) -> bool:
    """Whether what depends on sizes alone is to come from an operator of ours in the graph that is being compiled.

    What a compiler sees being made, a mask or an index, it makes again for each score. Not on a GPU, where such an
    operator would split a CUDA graph.
    """
    return in_compiler() and x.device.type == "cpu"


def known(condition: bool) -> bool:
    """Whether a condition on sizes holds; while a graph for changing sizes is traced, whether it always does.

    Asked in this way, a condition that depends on the size does not tie the graph to the size at hand.
    """
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(condition)
    return bool(condition)


def changing(length: int) -> bool:
    """Whether a length may be another one at the next call of the graph that is being compiled."""
    if in_compiler():
        from torch.fx.experimental.symbolic_shapes import has_static_value

        return not has_static_value(length)
    return False
