"""Which groups of operators are one operator spelled out? LayerNormalization, as exporters before opset 17 write it.

    d = x - ReduceMean(x);   d / Sqrt(ReduceMean(d ^ 2) + epsilon) [* scale] [+ bias]

Only what is certain is replaced: a norm over the last axis with constant parameters, whose inner values
nobody else reads. A model below opset 17 gets the spelled form back (see `rules.layer_norm`).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.axes import array_of, as_float64, rank, static_size
from converters.compaction.names import register_initializer
from converters.compaction.rules.common import int_attribute
from converters.compaction.rules.reduction import reduced_dims


def recognise_layer_norms(graph: ir.Graph) -> None:
    """Replace every spelled-out layer norm over a static last axis by LayerNormalization."""
    for node in list(graph):
        if node.graph is graph and _is(node, "Div", "Mul"):
            _replace(graph, node)


def _is(node: ir.Node | None, *op_types: str) -> bool:
    return node is not None and node.domain in ("", "ai.onnx") and node.op_type in op_types


def _maker(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that makes the value, if it has one of these types."""
    node = None if value is None else value.producer()
    return node if _is(node, *op_types) else None


def _scalar(value: ir.Value | None) -> float | None:
    array = array_of(value)
    return float(as_float64(array).reshape(())) if array is not None and array.size == 1 else None


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    found = _statistics(node)
    if found is None:
        return
    x, epsilon, inner = found
    if any(item.outputs[0].is_graph_output() for item in inner):
        return
    if {use.node for item in inner for use in item.outputs[0].uses()} - inner != {node}:
        return  # somebody else reads the statistics
    width = static_size(x, (rank(x) or 0) - 1)
    if width is None or width < 2 or x.dtype is None:
        return
    scale_node, scale = _parameter(graph, node, "Mul", width)
    last, bias = _parameter(graph, scale_node, "Add", width)
    name = f"{last.outputs[0].name}_spelled"
    if scale is None:
        scale = _add_vector(graph, f"{name}_scale", np.ones(width), x.dtype)
    fused = ir.node(
        "LayerNormalization",
        [x, scale] if bias is None else [x, scale, bias],
        attributes={"axis": ir.AttrInt64("axis", -1), "epsilon": ir.AttrFloat32("epsilon", epsilon)},
        name=f"{last.name}_layer_norm",
    )
    output, result = last.outputs[0], fused.outputs[0]
    result.name, result.shape, result.type = output.name, output.shape, output.type
    output.name = name
    graph.insert_before(last, fused)
    output.replace_all_uses_with(result, replace_graph_outputs=True)


def _statistics(node: ir.Node) -> tuple[ir.Value, float, set[ir.Node]] | None:
    """(x, epsilon, the nodes in between) where the node is d / Sqrt(mean(d^2) + epsilon) with d = x - mean(x)."""
    for centred, root, between in _quotients(node):
        difference = _maker(centred, "Sub")
        added = _maker(root, "Add")
        if difference is None or added is None:
            continue
        for slot in (0, 1):
            epsilon = _scalar(added.inputs[slot])
            variance = _mean_over_last(added.inputs[1 - slot])
            if epsilon is None or variance is None or float(np.float32(epsilon)) != epsilon:
                continue
            square = _maker(variance.inputs[0], "Pow", "Mul")
            other = None if square is None else _maker(square.inputs[0], "Sub")
            if square is None or other is None or not _squares(square):
                continue
            x = difference.inputs[0]
            means = [_mean_over_last(item.inputs[1]) for item in (difference, other)]
            if x is None or other.inputs[0] is not x or any(m is None or m.inputs[0] is not x for m in means):
                continue
            inner = {*between, difference, other, added, variance, square, *(m for m in means if m is not None)}
            return x, epsilon, inner
    return None


def _quotients(node: ir.Node) -> list[tuple[ir.Value | None, ir.Value | None, list[ir.Node]]]:
    """Ways to read the node as numerator / Sqrt(value): (numerator, value, nodes in between)."""
    if node.op_type == "Div":
        root = _maker(node.inputs[1], "Sqrt")
        return [] if root is None else [(node.inputs[0], root.inputs[0], [root])]
    found: list[tuple[ir.Value | None, ir.Value | None, list[ir.Node]]] = []
    for slot in (0, 1):
        inverse = _maker(node.inputs[slot], "Reciprocal")
        root = None if inverse is None else _maker(inverse.inputs[0], "Sqrt")
        if inverse is not None and root is not None:
            found.append((node.inputs[1 - slot], root.inputs[0], [inverse, root]))
    return found


def _mean_over_last(value: ir.Value | None) -> ir.Node | None:
    node = _maker(value, "ReduceMean")
    if node is None or int_attribute(node, "keepdims", 1) != 1 or node.inputs[0] is None:
        return None
    size = rank(node.inputs[0])
    return node if size is not None and reduced_dims(node) == {size - 1} else None


def _squares(node: ir.Node) -> bool:
    return node.inputs[0] is node.inputs[1] if node.op_type == "Mul" else _scalar(node.inputs[1]) == 2


def _parameter(graph: ir.Graph, node: ir.Node, op_type: str, width: int) -> tuple[ir.Node, ir.Value | None]:
    """The node's only reader and its constant operand [width], if it multiplies (or adds) one; else the node."""
    output = node.outputs[0]
    readers = [use.node for use in output.uses()]
    if output.is_graph_output() or len(readers) != 1 or not _is(readers[0], op_type):
        return node, None
    reader = readers[0]
    vector = reader.inputs[1] if reader.inputs[0] is output else reader.inputs[0]
    array = array_of(vector)
    size = rank(output)
    if vector is None or array is None or vector.dtype is None or size is None or array.ndim > size:
        return node, None
    if array.size != width or array.ndim == 0 or array.shape[-1] != width:
        return node, None
    if array.ndim == 1:
        return reader, vector
    return reader, _add_vector(graph, f"{vector.name}_vector", array.ravel(), vector.dtype)


def _add_vector(graph: ir.Graph, name: str, array: NDArray[np.generic], dtype: ir.DataType) -> ir.Value:
    while name in graph.initializers:
        name += "_again"
    tensor = ir.Tensor(np.asarray(array).astype(dtype.numpy()), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(dtype), const_value=tensor)
    register_initializer(graph, value)
    return value
