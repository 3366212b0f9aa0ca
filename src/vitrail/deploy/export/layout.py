"""Rewrites of an OpenVINO graph with equal outputs, in shapes that its CPU plugin fuses.

- A linear layer of a map ``(B, H, W, C)`` becomes one of tokens ``(B, H * W, C)``. The plugin fuses what follows a
  quantised layer (scale, bias, GELU, the next quantiser) along the last axis of three alone.
- Windows move to the batch before heads are transposed, so that attention has the four axes that the plugin knows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vitrail.extras import import_extra

# An ``openvino.Model`` and an ``openvino.Node``; openvino is an optional package without types.
Graph = Any
Node = Any

# Operations on each value, behind a layer, whose other input is constant.
_FUSED = ("Add", "Multiply", "Subtract", "Gelu", "Relu", "Swish")


def rewrite(model: Graph) -> None:
    """Rewrite a graph in place."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul":
            _flatten_layer(node)
        elif node.get_type_name() == "Transpose":
            _merge_windows(node)
    model.validate_nodes_and_infer_types()


def _flatten_layer(layer: Node) -> None:
    """Apply a linear layer, and operations fused with it, to tokens instead of a map."""
    sizes = _sizes(layer.input_value(0))
    if layer.input_value(1).get_node().get_type_name() != "Constant" or sizes is None or len(sizes) < 4:
        return
    last = layer
    vectors = []
    while (follower := _follower(last)) is not None:
        last, own = follower
        vectors += own
    found = _sizes(last.output(0))
    assert found is not None, "a layer has as many static axes as its input"
    users = last.output(0).get_target_inputs()
    layer.input(0).replace_source_output(_reshape(layer.input_value(0), [0, -1, sizes[-1]]))
    for own in vectors:
        values = own.get_source_output().get_node().get_data()
        own.replace_source_output(_constant(values.reshape(values.shape[-1:])))
    back = _reshape(last.output(0), [0, *found[1:]])
    for user in users:
        user.replace_source_output(back)


def _follower(node: Node) -> tuple[Node, list[Any]] | None:
    """Return the only user of a node if it can be fused with it, and its inputs of constant vectors; None otherwise."""
    users = list(node.output(0).get_target_inputs())
    if len(users) != 1 or users[0].get_node().get_type_name() not in _FUSED:
        return None
    user = users[0].get_node()
    others = [own for own in user.inputs() if own.get_index() != users[0].get_index()]
    for other in others:
        source = other.get_source_output()
        if source.get_node().get_type_name() != "Constant" or math.prod(source.get_shape()[:-1]) != 1:
            return None
    return user, others


def _merge_windows(transpose: Node) -> None:
    """Exchange a transposition that leaves two leading axes, and a reshape that merges or separates them."""
    order = [int(axis) for axis in transpose.input_value(1).get_node().get_data()]
    before, after = _sizes(transpose.input_value(0)), _sizes(transpose.output(0))
    if order[:2] != [0, 1] or len(order) < 4 or before is None or after is None:
        return
    inner = [0, *(axis - 1 for axis in order[2:])]
    users = list(transpose.output(0).get_target_inputs())
    if len(users) == 1 and users[0].get_node().get_type_name() == "Reshape":
        merged = _sizes(users[0].get_node().output(0))
        if merged is not None and merged[1:] == after[2:]:
            found = _transpose(_reshape(transpose.input_value(0), [-1, *before[2:]]), inner)
            for user in users[0].get_node().output(0).get_target_inputs():
                user.replace_source_output(found)
            return
    separate = transpose.input_value(0).get_node()
    if separate.get_type_name() == "Reshape":
        merged = _sizes(separate.input_value(0))
        if merged is not None and merged[1:] == before[2:]:
            found = _reshape(_transpose(separate.input_value(0), inner), [-1, *after[1:]])
            for user in users:
                user.replace_source_output(found)


def _sizes(output: Any) -> list[int] | None:
    """Return the sizes of the axes, -1 for a free batch; None if another one is free."""
    shape = output.get_partial_shape()
    if shape.rank.is_dynamic or shape.rank.get_length() == 0 or any(size.is_dynamic for size in list(shape)[1:]):
        return None
    return [-1 if size.is_dynamic else size.get_length() for size in shape]


def _reshape(output: Any, sizes: Sequence[int]) -> Any:
    """Reshape; 0 keeps the axis."""
    operations = import_extra("openvino.opset13", "export")
    return operations.reshape(output, _constant(np.array(sizes, dtype=np.int64)), True).output(0)


def _transpose(output: Any, order: Sequence[int]) -> Any:
    operations = import_extra("openvino.opset13", "export")
    return operations.transpose(output, _constant(np.array(order, dtype=np.int64))).output(0)


def _constant(values: np.ndarray) -> Any:
    return import_extra("openvino.opset13", "export").constant(values).output(0)
