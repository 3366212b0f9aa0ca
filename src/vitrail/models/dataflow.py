"""The graph of a forward pass: which module reads the output of which, with the shapes between them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitrail.layers.modes import evaluation_mode
from vitrail.models.base import VisionModel
from vitrail.models.profile import walk

OUTPUT = "output"
_NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Node:
    """A module, a parameter that the model itself holds, an input or the output.

    Attributes:
        name: The first module's name; of an input its stream, :data:`OUTPUT` for the output.
        kind: Its class; "input", "parameter" or "output".
        count: Consecutive modules of the same class and shape that it stands for.
        last: Name of the last of them.
        shape: Shape of its output for one image.
        parameters: Parameters of all of them.
    """

    name: str
    kind: str
    count: int
    last: str
    shape: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class Edge:
    """A tensor from one node to another.

    Attributes:
        source: Name of the node that it comes from.
        target: Name of the node that reads it.
        shape: Output of the source for one image.
    """

    source: str
    target: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Dataflow:
    """Nodes in the order of execution, and the edges between them."""

    nodes: list[Node]
    edges: list[Edge]


class _Lineage(TorchFunctionMode):
    """Follows which nodes each tensor was computed from.

    Attributes:
        inside: Depth of nested nodes that run now; their own computations are not followed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inside = 0
        # With the tensors themselves, so that no other has the same id.
        self._sources: dict[int, tuple[Tensor, frozenset[str]]] = {}

    def mark(self, value: Any, sources: frozenset[str]) -> None:
        """Record the sources of all tensors in a value."""
        for tensor in _tensors(value):
            self._sources[id(tensor)] = (tensor, sources)

    def sources(self, value: Any) -> frozenset[str]:
        """Return the sources of all tensors in a value."""
        found = (self._sources.get(id(tensor), (tensor, _NOTHING))[1] for tensor in _tensors(value))
        return frozenset().union(*found)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.inside and (sources := self.sources([*args, *(kwargs or {}).values()])):
            self.mark(result, sources)
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def trace_dataflow(
    model: VisionModel, inputs: Sequence[Tensor], depth: int | Literal["blocks", "parts"] = "blocks"
) -> Dataflow:
    """Run a batch through a model and record its graph.

    Args:
        model: The model; it is run in evaluation mode.
        inputs: One tensor for each stream, on the model's device.
        depth: Depth to which modules are opened, as for :func:`~vitrail.models.profile.walk`.

    Returns:
        The graph; consecutive modules of one class and shape are one node.

    Raises:
        ConfigError: Another depth.
        ShapeError: Inputs that the model does not take.
    """
    names = {step.name for step in walk(model, inputs, depth, repeats=0) if step.output_shape is not None}
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    nodes: dict[str, Node] = {}
    edges: dict[tuple[str, str], None] = {}
    lineage = _Lineage()
    for stream, x in zip(model.streams, inputs, strict=True):
        nodes[stream.name] = Node(stream.name, "input", 1, stream.name, tuple(x.shape[1:]), 0)
        lineage.mark(x, frozenset({stream.name}))
    for name, parameter in parameters.items():
        if name in names:
            lineage.mark(parameter, frozenset({name}))

    def enter(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not lineage.inside:
            for source in sorted(lineage.sources([*args, *kwargs.values()])):
                edges[source, name] = None
        lineage.inside += 1

    def leave(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        lineage.inside -= 1
        if lineage.inside:
            return
        first = next(_tensors(output))
        count = sum(p.numel() for p in module.parameters())
        nodes[name] = Node(name, type(module).__name__, 1, name, tuple(first.shape[1:]), count)
        lineage.mark(output, frozenset({name}))

    with ExitStack() as stack:
        for name in (names & modules.keys()) - {""}:
            before = modules[name].register_forward_pre_hook(functools.partial(enter, name), with_kwargs=True)
            after = modules[name].register_forward_hook(functools.partial(leave, name), with_kwargs=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(lineage)
        output = model(*inputs)
        found = sorted(lineage.sources(output))
    nodes[OUTPUT] = Node(OUTPUT, "output", 1, OUTPUT, tuple(next(_tensors(output)).shape[1:]), 0)
    edges |= {(source, OUTPUT): None for source in found}
    for source in {source for source, _ in edges} - nodes.keys():
        value = parameters[source]
        nodes[source] = Node(source, "parameter", 1, source, tuple(value.shape[1:]), value.numel())
    return _joined(nodes, edges)


def _joined(nodes: dict[str, Node], edges: Iterable[tuple[str, str]]) -> Dataflow:
    """Join chains of nodes of one class and shape."""
    pairs = list(edges)
    before: dict[str, list[str]] = {name: [] for name in nodes}
    after: dict[str, list[str]] = {name: [] for name in nodes}
    for source, target in pairs:
        before[target].append(source)
        after[source].append(target)
    group: dict[str, str] = {}
    merged: dict[str, Node] = {}
    for name in _in_order(nodes, before):
        node = nodes[name]
        if len(before[name]) == 1 and len(after[before[name][0]]) == 1:
            previous = merged[group[before[name][0]]]
            if (previous.kind, previous.shape) == (node.kind, node.shape) and node.kind not in ("input", "output"):
                group[name] = previous.name
                total = previous.parameters + node.parameters
                merged[previous.name] = replace(previous, count=previous.count + 1, last=name, parameters=total)
                continue
        group[name], merged[name] = name, node
    joined = {(group[a], group[b]): None for a, b in pairs if group[a] != group[b]}
    return Dataflow(list(merged.values()), [Edge(a, b, merged[a].shape) for a, b in joined])


def _in_order(nodes: dict[str, Node], before: dict[str, list[str]]) -> list[str]:
    """Order nodes so that each comes after those that it reads."""
    done: dict[str, None] = {}

    def visit(name: str) -> None:
        if name in done:
            return
        for source in before[name]:
            visit(source)
        done[name] = None

    for name in nodes:
        visit(name)
    return list(done)
