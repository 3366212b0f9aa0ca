"""Parts of an OpenVINO graph for quantisation: operations outside of the network, and layers that share quantisers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

# An ``openvino.Model`` and an ``openvino.Node``; openvino is an optional package without types.
Graph = Any
Node = Any

_LAYERS = ("Convolution", "GroupConvolution", "MatMul")
_QUANTIZER = "FakeQuantize"
# Operations that move values without computing: a quantiser acts on the layers behind them.
_MOVES = (
    "Broadcast", "Concat", "Convert", "Gather", "Pad", "Reshape", "Roll", "Slice", "Split", "Squeeze", "StridedSlice",
    "Transpose", "Unsqueeze", "VariadicSplit",
)  # fmt: skip


def names_outside(model: Graph, output: str = "logits") -> list[str]:
    """Name the operations that quantisation must leave alone.

    They are the preprocessing (all ancestors of the first layers, by the graph), what serves other outputs alone, such
    as heatmaps, probabilities and out-of-distribution scores, what depends on the size of the pixels alone, such as
    resampled positions, and the products of attention: quantising query and key takes longer than their product gains.

    Args:
        model: The graph of an export. Its preprocessing ends by filling pixels without data (``IsNaN``).
        output: Output that the network is for.

    Returns:
        Names in the order of the graph.
    """
    ordered = [node for node in model.get_ordered_ops() if node.get_type_name() != "Constant"]
    sources = {_name(node): [_name(source) for source in _sources(node)] for node in ordered}
    network = _closure([_name(_sources(_result(model, output))[0])], lambda name: sources.get(name, ()))
    of_pixels = _of_pixels(ordered)
    first = _first_layers(ordered, _prepared(ordered) & of_pixels)
    inputs = _closure([source for name in first for source in sources[name]], lambda name: sources.get(name, ()))
    kept = ("Parameter", "Result")
    return [
        _name(node)
        for node in ordered
        if node.get_type_name() not in kept
        and (_name(node) in inputs or _name(node) not in network or _name(node) not in of_pixels or _is_attention(node))
    ]


def _of_pixels(ordered: Sequence[Node]) -> set[str]:
    """Name the operations on values of the pixels, not on their size alone."""
    found: set[str] = set()
    for node in ordered:
        if node.get_type_name() == "Parameter" or any(
            _name(source) in found and source.get_type_name() != "ShapeOf" for source in _sources(node)
        ):
            found.add(_name(node))
    return found


def _is_attention(node: Node) -> bool:
    """Whether the node is attention, or a product of two activations."""
    kind = node.get_type_name()
    return kind == "ScaledDotProductAttention" or (
        kind == "MatMul" and not any(_is_constant(source) for source in _sources(node))
    )


def _result(model: Graph, output: str) -> Node:
    return next(port.get_node() for port in model.outputs if output in port.get_names())


def _first_layers(ordered: Sequence[Node], among: set[str]) -> list[str]:
    """Name the layers with weights that have no such layer upstream."""
    behind: set[str] = set()
    first = []
    for node in ordered:
        if any(_name(source) in behind for source in _sources(node)):
            behind.add(_name(node))
        elif _name(node) in among and node.get_type_name() in _LAYERS and _has_weights(node):
            first.append(_name(node))
            behind.add(_name(node))
    return first


def _has_weights(node: Node) -> bool:
    """Whether the second input is constant."""
    return _is_constant(_sources(node)[1])


def _is_constant(node: Node) -> bool:
    """Whether a value is computed from constants alone."""
    return not any(source.get_type_name() in ("Parameter", "ShapeOf") for source in _upstream(node))


def _upstream(node: Node) -> list[Node]:
    found = {_name(node): node}
    waiting = [node]
    while waiting:
        for source in _sources(waiting.pop()):
            if _name(source) not in found:
                found[_name(source)] = source
                waiting.append(source)
    return list(found.values())


def _prepared(ordered: Sequence[Node]) -> set[str]:
    """Name the operations behind the filling of pixels without data; all where there is none."""
    filling = [_name(node) for node in ordered if node.get_type_name() == "IsNaN"]
    behind = {name: _behind(ordered, name) for name in filling}
    # Resizing tests for NaN too, further up.
    last = [own for own in behind.values() if not own.intersection(filling)]
    return set().union(*last) if last else {_name(node) for node in ordered}


def _behind(ordered: Sequence[Node], name: str) -> set[str]:
    """Name the operations behind one."""
    reached = {name}
    for node in ordered:
        if any(_name(source) in reached for source in _sources(node)):
            reached.add(_name(node))
    return reached - {name}


@dataclass(frozen=True)
class Group:
    """Layers that share activation quantisers, so that they leave int8 together.

    Attributes:
        layers: Names of the layers.
        quantizers: Names of the quantisers of their activations.
    """

    layers: tuple[str, ...]
    quantizers: tuple[str, ...]

    def __add__(self, other: Group) -> Group:
        return Group(self.layers + other.layers, self.quantizers + other.quantizers)


def quantized_groups(model: Graph) -> list[Group]:
    """Find the groups of layers of a quantised graph, in the order of the graph."""
    groups: list[Group] = []
    for node in model.get_ordered_ops():
        if node.get_type_name() != _QUANTIZER or _sources(node)[0].get_type_name() == "Constant":
            continue
        group = Group(tuple(_consumers(node)), (_name(node),))
        shared = [other for other in groups if set(other.layers) & set(group.layers)]
        for other in shared:
            groups.remove(other)
            group = Group(tuple(dict.fromkeys(other.layers + group.layers)), other.quantizers + group.quantizers)
        groups.append(group)
    return groups


def _consumers(node: Node) -> list[str]:
    """Name the computing operations that use a node's values, through operations that only move them."""
    found: list[str] = []
    waiting, seen = [node], set()
    while waiting:
        for output in waiting.pop().outputs():
            for target in output.get_target_inputs():
                user = target.get_node()
                if user.get_type_name() not in (*_MOVES, _QUANTIZER):
                    found.append(_name(user))
                elif _name(user) not in seen:
                    seen.add(_name(user))
                    waiting.append(user)
    return list(dict.fromkeys(found))


def merge_neighbours(groups: Sequence[Group], most: int) -> list[Group]:
    """Merge neighbouring groups, evenly, so that at most so many remain."""
    count = min(most, len(groups))
    borders = [len(groups) * i // count for i in range(count + 1)] if count else []
    merged = []
    for start, end in pairwise(borders):
        group = groups[start]
        for other in groups[start + 1 : end]:
            group = group + other
        merged.append(group)
    return merged


def without_quantizers(model: Graph, names: Iterable[str]) -> Graph:
    """Return a copy of a quantised graph in which some activations stay in floating point; weights stay quantised."""
    copy = model.clone()
    dropped = set(names)
    for node in copy.get_ordered_ops():
        if _name(node) in dropped:
            for target in node.output(0).get_target_inputs():
                target.replace_source_output(node.input_value(0))
    return copy


def _name(node: Node) -> str:
    return str(node.get_friendly_name())


def _sources(node: Node) -> list[Node]:
    return [value.get_node() for value in node.input_values()]


def _closure(start: Iterable[str], neighbours: Callable[[str], Iterable[str]]) -> set[str]:
    found, waiting = set(start), list(start)
    while waiting:
        for name in neighbours(waiting.pop()):
            if name not in found:
                found.add(name)
                waiting.append(name)
    return found
