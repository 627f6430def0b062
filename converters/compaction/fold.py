"""Fold constant scale vectors into the weights around them, so that surviving gate values cost nothing.

Works on the graph as it is after slicing and proves each step from it alone. A scale may move backwards
through operators that commute with it (a ReLU only with positive scales) into the rows of the weight that
made the value, or forwards into the columns of every weight that reads it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.axes import Constants, array_of, as_float64, is_constant, rank
from converters.compaction.names import register_initializer
from converters.compaction.rules.common import float_attribute, int_attribute, ints_attribute, operand, string_attribute
from converters.compaction.rules.einsum import parse_equation
from converters.compaction.scale_views import Scale, behind_views

# f(s * x) = s * f(x) for every s > 0, channel by channel
_POSITIVELY_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "MaxPool", "GlobalMaxPool", "Abs"})
# f(s * x) = s * f(x) for every s
_LINEAR = frozenset({"AveragePool", "GlobalAveragePool", "Dropout", "Identity", "Neg"})


def fold_scales(graph: ir.Graph) -> None:
    """Remove every Mul by a constant vector whose factors can move into weights."""
    # a scale that has gone may open the way for the one in front of it
    while sum(_fold_away(graph, node) for node in list(graph)):
        pass


def _fold_away(graph: ir.Graph, node: ir.Node) -> bool:
    if node.op_type != "Mul" or node.domain not in ("", "ai.onnx") or node.outputs[0].is_graph_output():
        return False
    for data, scale in _scales_of(node):
        if (scale.factors == 1).all() or _fold_backward(graph, data, scale, node) or _fold_forward(graph, node, scale):
            node.outputs[0].replace_all_uses_with(data)
            graph.remove(node, safe=True)
            return True
    return False


def merge_additions(graph: ir.Graph) -> None:
    """x + a + b with constants a and b becomes x + (a + b): folded constants often meet a bias that follows."""
    for node in list(graph):
        if node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
            continue
        outer = next((slot for slot in (0, 1) if array_of(node.inputs[slot]) is not None), None)
        if outer is None or (inner_value := node.inputs[1 - outer]) is None:
            continue
        before = inner_value.producer()
        if before is None or before.op_type != "Add" or not _only_reader(inner_value, node):
            continue
        inner = next((slot for slot in (0, 1) if array_of(before.inputs[slot]) is not None), None)
        data = None if inner is None else before.inputs[1 - inner]
        a, b = None if inner is None else array_of(before.inputs[inner]), array_of(node.inputs[outer])
        if data is None or a is None or b is None or is_constant(data):
            continue
        if a.dtype != b.dtype or a.shape != b.shape or not rank(data) or a.ndim > (rank(data) or 0):
            continue
        _set(graph, node, outer, (as_float64(a) + as_float64(b)).astype(b.dtype))
        node.replace_input_with(1 - outer, data)
        graph.remove(before, safe=True)


def fold_batch_norms(graph: ir.Graph) -> None:
    """A BatchNormalization right behind a Conv that nobody else reads becomes part of its weight and bias."""
    for node in list(graph):
        if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
            continue
        if int_attribute(node, "training_mode", 0):
            continue
        x = node.inputs[0]
        conv = None if x is None else x.producer()
        if x is None or conv is None or conv.op_type != "Conv" or conv.domain or not _only_reader(x, node):
            continue
        parameters = [array_of(value) for value in node.inputs[1:5]]
        weight, bias = array_of(conv.inputs[1]), array_of(operand(conv, 2))
        given = [array for array in parameters if array is not None]
        if weight is None or len(given) != 4 or (operand(conv, 2) is not None and bias is None):
            continue
        if any(array.shape != weight.shape[:1] or array.dtype != weight.dtype for array in given):
            continue
        gain, offset, mean, variance = (as_float64(array) for array in given)
        factors = gain / np.sqrt(variance + float_attribute(node, "epsilon", 1e-5))
        old = np.zeros_like(factors) if bias is None else as_float64(bias)
        shaped = factors.reshape([-1] + [1] * (weight.ndim - 1))
        _set(graph, conv, 1, (as_float64(weight) * shaped).astype(weight.dtype))
        if bias is None:
            conv.resize_inputs(3)
            conv.replace_input_with(2, node.inputs[2])
        _set(graph, conv, 2, ((old - mean) * factors + offset).astype(weight.dtype))
        output = node.outputs[0]
        if output.is_graph_output():
            # the name of the output stays: the Conv takes over the value's name and its declaration
            x.shape, x.type = output.shape, output.type
            name, output.name = output.name, f"{output.name}_folded"
            x.name = name
        output.replace_all_uses_with(x, replace_graph_outputs=True)
        graph.remove(node, safe=True)


def _scales_of(node: ir.Node) -> list[tuple[ir.Value, Scale]]:
    """The data operand and the constant vector that multiplies it; a single number is one along several dimensions."""
    output = node.outputs[0]
    for slot in (0, 1):
        vector, data = node.inputs[slot], node.inputs[1 - slot]
        array = array_of(vector)
        if array is None or data is None or is_constant(data):
            continue
        size, out_rank = rank(data), rank(output)
        if size is None or size != out_rank or array.ndim > size or not np.isfinite(as_float64(array)).all():
            return []
        assert data.shape is not None
        wide = [dim for dim in range(array.ndim) if array.shape[dim] != 1]
        if len(wide) > 1 or array.size == 0:
            return []
        # one number scales the channels of a convolution as well as the features of a matrix product
        dims = [size - array.ndim + wide[0]] if wide else list(dict.fromkeys((1, size - 1)))
        widths = {dim: data.shape[dim] for dim in dims if 0 <= dim < size}
        factors = as_float64(array).ravel()
        return [
            (data, Scale(dim, np.broadcast_to(factors, width).copy()))
            for dim, width in widths.items()
            if isinstance(width, int) and factors.size in (1, width)
        ]
    return []


def _only_reader(value: ir.Value, reader: ir.Node) -> bool:
    return not value.is_graph_output() and all(use.node is reader for use in value.uses())


def _fold_backward(graph: ir.Graph, value: ir.Value, scale: Scale, reader: ir.Node) -> bool:
    """Move the scale up to the weight that makes the value; nothing changes unless it gets there."""
    node = value.producer()
    offsets: list[tuple[ir.Node, int, NDArray[np.generic]]] = []
    while node is not None and _only_reader(value, reader) and node.domain in ("", "ai.onnx"):
        source = node.inputs[0] if node.inputs else None
        if node.op_type in _LINEAR or (node.op_type in _POSITIVELY_HOMOGENEOUS and (scale.factors > 0).all()):
            if (scale.dim != 1 and "Pool" in node.op_type) or len(node.outputs) > 1:
                return False
        elif node.op_type == "Transpose":
            permutation = ints_attribute(node, "perm")
            if permutation is None:
                return False
            scale = Scale(permutation[scale.dim], scale.factors)
        elif node.op_type in ("Add", "Sub"):
            # s * (x + b) = s * x + s * b
            slot = next((slot for slot in (0, 1) if array_of(node.inputs[slot]) is not None), None)
            array = None if slot is None else array_of(node.inputs[slot])
            size = rank(node.outputs[0])
            if slot is None or array is None or size is None:
                return False
            source = node.inputs[1 - slot]
            if source is None or rank(source) != size or array.ndim > size or _is_wider(array, source):
                return False
            factors = scale.factors.reshape([-1] + [1] * (size - 1 - scale.dim))
            offsets.append((node, slot, (as_float64(array) * factors).astype(array.dtype)))
        else:
            if not _scale_rows(graph, node, scale):
                return False
            for reader, slot, array in offsets:
                _set(graph, reader, slot, array)
            return True
        if source is None:
            return False
        value, reader, node = source, node, source.producer()
    return False


def _is_wider(array: NDArray[np.generic], value: ir.Value) -> bool:
    """Whether the array stretches a dimension of the value when both are added."""
    assert value.shape is not None
    return any(size != 1 and size != value.shape[dim - array.ndim] for dim, size in enumerate(array.shape))


def _scale_rows(graph: ir.Graph, node: ir.Node, scale: Scale) -> bool:
    """Multiply the rows of the weight (and the bias) that make the output."""
    if node.op_type in ("Conv", "ConvTranspose"):
        transposed = node.op_type == "ConvTranspose"
        if scale.dim != 1 or (transposed and int_attribute(node, "group", 1) != 1):
            return False
        return _scale_operands(graph, node, scale.factors, {1: 1 if transposed else 0, 2: 0})
    if node.op_type == "BatchNormalization" and scale.dim == 1:
        return _scale_operands(graph, node, scale.factors, {1: 0, 2: 0})
    if node.op_type == "Gemm" and scale.dim == 1:
        return _scale_operands(graph, node, scale.factors, {1: 0 if int_attribute(node, "transB", 0) else 1, 2: -1})
    weight = array_of(operand(node, 1))
    if (
        node.op_type == "MatMul"
        and scale.dim == (rank(node.outputs[0]) or 0) - 1
        and weight is not None
        and weight.ndim > 1
    ):
        # behind a product with a vector the last dimension is one of rows
        return _scale_operands(graph, node, scale.factors, {1: -1})
    if node.op_type == "Einsum":
        labels = _einsum_labels(node)
        place = None if labels is None else _einsum_weight(node, labels[0], labels[1][scale.dim], scale)
        return place is not None and _scale_operands(graph, node, scale.factors, dict([place]))
    return False


def _einsum_labels(node: ir.Node) -> tuple[list[list[str]], list[str]] | None:
    ranks = [size for value in node.inputs if value is not None and (size := rank(value)) is not None]
    return parse_equation(string_attribute(node, "equation", ""), ranks) if len(ranks) == len(node.inputs) else None


def _einsum_weight(node: ir.Node, operands: list[list[str]], label: str, scale: Scale) -> tuple[int, int] | None:
    """A constant operand that carries the label at full width, and its dimension: factors along it may go there."""
    for slot, labels in enumerate(operands):
        array = array_of(node.inputs[slot])
        if labels.count(label) == 1 and array is not None and array.shape[labels.index(label)] == scale.factors.size:
            return slot, labels.index(label)
    return None


def _fold_forward(graph: ir.Graph, node: ir.Node, scale: Scale) -> bool:
    """Multiply the columns of every weight that reads the value; all readers must allow it."""
    value, scale = behind_views(node.outputs[0], scale)
    if value.is_graph_output():
        return False
    uses = list(value.uses())
    plans = [_columns(use.node, use.idx, scale) for use in uses]
    if not uses or any(plan is None for plan in plans):
        return False
    if any(_is_tied(use.node, slot) for use, plan in zip(uses, plans, strict=True) for slot in plan or ()):
        return False
    for use, plan in zip(uses, plans, strict=True):
        assert plan is not None
        done = _scale_operands(graph, use.node, scale.factors, plan)
        assert done
    return True


def _columns(node: ir.Node, slot: int, scale: Scale) -> dict[int, int] | None:
    """Which operand's dimension reads the value, None if the reader is not a weighted sum over it."""
    if node.domain in ("", "ai.onnx") and node.op_type == "Einsum":
        labels = _einsum_labels(node)
        place = None if labels is None else _einsum_weight(node, labels[0], labels[0][slot][scale.dim], scale)
        return None if place is None else dict([place])
    if node.domain not in ("", "ai.onnx") or array_of(operand(node, 1)) is None or slot != 0:
        return None
    weight = node.inputs[1]
    if node.op_type == "Conv" and scale.dim == 1 and int_attribute(node, "group", 1) == 1:
        return {1: 1}
    if node.op_type == "Gemm" and scale.dim == 1 and not int_attribute(node, "transA", 0):
        return {1: 1 if int_attribute(node, "transB", 0) else 0}
    if (
        node.op_type == "MatMul"
        and weight is not None
        and rank(weight) == 2
        and scale.dim == (rank(node.outputs[0]) or 0) - 1
    ):
        return {1: 0}
    return None


def _is_tied(node: ir.Node, slot: int) -> bool:
    # a tied weight would be stored twice to save one small Mul
    value = operand(node, slot)
    return value is not None and len(value.uses()) > 1


def _scale_operands(graph: ir.Graph, node: ir.Node, factors: Constants, dims: dict[int, int]) -> bool:
    arrays: dict[int, NDArray[np.generic]] = {}
    for slot, dim in dims.items():
        value = operand(node, slot)
        if value is None:
            continue
        array = array_of(value)
        if array is None or array.ndim == 0:
            return False
        if slot == 1 and _is_tied(node, slot):
            return False
        weight = slot == 1 or node.op_type == "Einsum"
        if array.shape[dim] not in (1, factors.size) or (array.shape[dim] == 1 and factors.size > 1 and weight):
            return False
        arrays[slot] = array
    for slot, array in arrays.items():
        dim = dims[slot] % array.ndim
        shaped = factors.reshape([-1 if d == dim else 1 for d in range(array.ndim)])
        _set(graph, node, slot, (as_float64(array) * shaped).astype(array.dtype))
    return True


def _set(graph: ir.Graph, node: ir.Node, slot: int, array: NDArray[np.generic]) -> None:
    old = node.inputs[slot]
    assert old is not None
    name = f"{old.name}_scaled"
    while name in graph.initializers:
        name += "_again"
    array = np.asarray(array, order="C")  # unlike ascontiguousarray it leaves a number without dimensions as it is
    tensor = ir.Tensor(array, name=name, dtype=old.dtype)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=old.type, const_value=tensor)
    register_initializer(graph, value)
    node.replace_input_with(slot, value)
