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
# The output that quantisation is for, and the prefix of results of an ONNX graph.
_LOGITS, _RESULT = "logits", "result "
# Operations that move values without computing: a quantiser acts on the layers behind them.
_MOVES = (
    "Broadcast", "Concat", "Convert", "Gather", "Pad", "Reshape", "Roll", "Slice", "Split", "Squeeze", "StridedSlice",
    "Transpose", "Unsqueeze", "VariadicSplit",
)  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """Operation of a graph, in OpenVINO's terms.

    Attributes:
        name: Its name.
        kind: OpenVINO's name of its type.
        sources: Names of the operations that compute its inputs.
    """

    name: str
    kind: str
    sources: tuple[str, ...]


# ONNX's names of types -> OpenVINO's.
_OF_ONNX = {"Conv": "Convolution", "Gemm": "MatMul", "Shape": "ShapeOf"}


def names_outside(model: Graph) -> list[str]:
    """Name the operations of an ``openvino.Model`` that quantisation must leave alone; see :func:`_outside`."""
    operations = [
        Operation(_name(node), node.get_type_name(), tuple(map(_name, _sources(node))))
        for node in model.get_ordered_ops()
    ]
    return _outside(operations, next(_name(port.get_node()) for port in model.outputs if _LOGITS in port.get_names()))


def names_outside_onnx(model: Any) -> list[str]:
    """Name the operations of an ``onnx.ModelProto`` that quantisation must leave alone; see :func:`_outside`."""
    return _outside(_onnx_operations(model), _RESULT + _LOGITS)


def _onnx_operations(model: Any) -> list[Operation]:
    """List the operations in order, among them the weights, the inputs and the results."""
    graph = model.graph
    weights = [tensor.name for tensor in graph.initializer]
    found = [Operation(name, "Constant", ()) for name in weights]
    found += [Operation(port.name, "Parameter", ()) for port in graph.input if port.name not in weights]
    makers = {operation.name: operation.name for operation in found}
    for node in graph.node:
        sources = tuple(makers[name] for name in node.input if name)
        found.append(Operation(node.name, _OF_ONNX.get(node.op_type, node.op_type), sources))
        makers.update(dict.fromkeys(node.output, node.name))
    return [*found, *(Operation(_RESULT + port.name, "Result", (makers[port.name],)) for port in graph.output)]


def _outside(operations: Sequence[Operation], result: str) -> list[str]:
    """Name the operations that quantisation must leave alone, in the order of the graph.

    They are the preprocessing (all ancestors of the first layers, by the graph), what serves other outputs alone, such
    as heatmaps, probabilities and out-of-distribution scores, what depends on the size of the pixels alone, such as
    resampled positions, and the products of attention: quantising query and key takes longer than their product gains.

    Args:
        operations: Operations of an export's graph in order. Its preprocessing ends by filling pixels without data
            (``IsNaN``).
        result: Name of the result that the network is for.
    """
    ordered = [one for one in operations if one.kind != "Constant"]
    sources = {one.name: one.sources for one in operations}
    network = _closure([result], lambda name: sources[name])
    of_pixels = _of_pixels(ordered)
    prepared = _prepared(ordered) & of_pixels
    first = _first_layers([one for one in ordered if one.name in of_pixels], prepared, of_pixels)
    inputs = _closure([source for name in first for source in sources[name]], lambda name: sources[name])
    return [
        one.name
        for one in ordered
        if one.kind not in ("Parameter", "Result")
        and (
            one.name in inputs or one.name not in network or one.name not in of_pixels or _is_attention(one, of_pixels)
        )
    ]


def _of_pixels(ordered: Sequence[Operation]) -> set[str]:
    """Name the operations on values of the pixels, not on their size or constants alone."""
    found: set[str] = set()
    for one in ordered:
        if one.kind == "Parameter" or (one.kind != "ShapeOf" and found.intersection(one.sources)):
            found.add(one.name)
    return found


def _is_attention(one: Operation, of_pixels: set[str]) -> bool:
    """Return whether an operation is attention, or a product of two activations."""
    return one.kind == "ScaledDotProductAttention" or (one.kind == "MatMul" and of_pixels.issuperset(one.sources[:2]))


def _first_layers(ordered: Sequence[Operation], among: set[str], of_pixels: set[str]) -> list[str]:
    """Name the layers with weights that have no such layer upstream."""
    behind: set[str] = set()
    first = []
    for one in ordered:
        if behind.intersection(one.sources):
            behind.add(one.name)
        elif one.name in among and one.kind in _LAYERS and one.sources[1] not in of_pixels:
            first.append(one.name)
            behind.add(one.name)
    return first


def _prepared(ordered: Sequence[Operation]) -> set[str]:
    """Name the operations behind the filling of pixels without data; all where there is none."""
    filling = [one.name for one in ordered if one.kind == "IsNaN"]
    behind = {name: _behind(ordered, name) for name in filling}
    # Resizing tests for NaN too, further up.
    last = [own for own in behind.values() if not own.intersection(filling)]
    return set().union(*last) if last else {one.name for one in ordered}


def _behind(ordered: Sequence[Operation], name: str) -> set[str]:
    """Name the operations behind one."""
    reached = {name}
    for one in ordered:
        if reached.intersection(one.sources):
            reached.add(one.name)
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
