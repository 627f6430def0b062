"""How are quantised weights analysed as the numbers they stand for, and stored as the integers they are?

Before the analysis the result of every DequantizeLinear of constants becomes an initializer that remembers its
recipe, so that all rules see a weight. After the rewriting those that have only been cut get their recipe
back, cut likewise: the same integers, scales and zero points. Nothing is ever quantised anew.

A recipe is [QuantizeLinear] DequantizeLinear [Transpose], all of constants (files of quantisation-aware training keep
float weights and quantise them on loading), with one scale or one per index of an axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.axes import as_float64, is_constant
from converters.compaction.names import register_initializer

RECIPE = "quantised_recipe"
# indices of each dimension that `rewrite` kept, where it cut an initializer
KEPT = "kept_indices"


@dataclass(frozen=True)
class _Step:
    """QuantizeLinear or DequantizeLinear.

    Attributes:
        parameters: scale and, if there is one, zero point.
        axis: the dimension along which vectors of them run.
    """

    node: ir.Node
    parameters: tuple[ir.Value, ...]
    axis: int


@dataclass(frozen=True)
class Recipe:
    """From a stored tensor to a weight.

    Attributes:
        permutation: dimension d of the weight is dimension permutation[d] of the stored tensor.
    """

    stored: ir.Value
    steps: tuple[_Step, ...]
    permutation: tuple[int, ...]


def dequantise_weights(graph: ir.Graph) -> None:
    """Replace what is dequantised from constants, and transposed after that, by initializers that know their recipe."""
    for node in list(graph):
        if node.op_type == "Transpose" and not node.domain and node.inputs[0] is not None:
            before = node.inputs[0].producer()
            recipe = None if before is None else _read_recipe(before)
            attribute = node.attributes.get("perm")
            if recipe is not None and attribute is not None:
                recipe = Recipe(recipe.stored, recipe.steps, tuple(attribute.as_ints()))
        else:
            recipe = _read_recipe(node)
        if recipe is not None and not node.outputs[0].is_graph_output():
            _replace(graph, node, recipe)


def _read_recipe(node: ir.Node) -> Recipe | None:
    if node.op_type != "DequantizeLinear" or node.domain:
        return None
    steps = [node]
    stored = node.inputs[0]
    if stored is not None and (maker := stored.producer()) is not None and maker.op_type == "QuantizeLinear":
        steps.insert(0, maker)
        stored = maker.inputs[0]
    if stored is None or stored.shape is None or not is_constant(stored):
        return None
    read = [_read_step(step, len(stored.shape)) for step in steps]
    found = tuple(step for step in read if step is not None)
    return Recipe(stored, found, tuple(range(len(stored.shape)))) if len(found) == len(steps) else None


def _read_step(node: ir.Node, size: int) -> _Step | None:
    parameters = tuple(value for value in node.inputs[1:] if value is not None)
    if not all(is_constant(value) for value in parameters) or not parameters:
        return None
    attribute, block = node.attributes.get("axis"), node.attributes.get("block_size")
    if block is not None and block.as_int() != 0:
        return None
    axis = 1 if attribute is None else attribute.as_int()
    return _Step(node, parameters, axis % size if size else 0)


def _replace(graph: ir.Graph, node: ir.Node, recipe: Recipe) -> None:
    output = node.outputs[0]
    uses = [use for use in output.uses() if use.node.graph is graph]
    # a QuantizeLinear or a Transpose that reads it is seen through itself
    uses = [use for use in uses if use.node.op_type != "Transpose"] if node.op_type != "Transpose" else uses
    if not uses or output.dtype is None:
        return
    array = np.transpose(_evaluate(recipe), recipe.permutation).astype(output.dtype.numpy())
    for number, (reader, slot) in enumerate(uses):
        name = f"{output.name}_dequantised{number}"
        tensor = ir.Tensor(array, name=name, dtype=output.dtype)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=output.type, const_value=tensor)
        value.meta[RECIPE] = recipe
        register_initializer(graph, value)
        reader.replace_input_with(slot, value)


def _evaluate(recipe: Recipe) -> NDArray[np.float64]:
    stored = recipe.stored.const_value
    assert stored is not None
    array = as_float64(stored.numpy())
    for step in recipe.steps:
        scale, zero = (_shaped(step, slot, array.ndim) for slot in (0, 1))
        if step.node.op_type == "QuantizeLinear":
            dtype = step.node.outputs[0].dtype
            assert dtype is not None
            low, high = _range(dtype)
            array = np.clip(np.rint(array / scale) + zero, low, high)
        else:
            array = (array - zero) * scale
    return array


def _shaped(step: _Step, slot: int, size: int) -> NDArray[np.float64]:
    if slot >= len(step.parameters):
        return np.zeros(())
    tensor = step.parameters[slot].const_value
    assert tensor is not None
    numbers = as_float64(tensor.numpy())
    if numbers.size == 1:
        return numbers.reshape(())
    return numbers.reshape([-1 if dim == step.axis else 1 for dim in range(size)])


def _range(dtype: ir.DataType) -> tuple[float, float]:
    bits = dtype.bitwidth
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if dtype.is_signed() else (0.0, 2.0**bits - 1)


def requantise_weights(graph: ir.Graph) -> None:
    """Give every dequantised weight its recipe back, cut as the weight has been cut."""
    made: dict[tuple[int, bytes], ir.Value] = {}
    first = next(iter(graph), None)
    for name, value in list(graph.initializers.items()):
        recipe = value.meta.get(RECIPE)
        if not isinstance(recipe, Recipe) or first is None or not value.uses():
            continue
        kept: dict[int, NDArray[np.int64]] = value.meta.get(KEPT, {})
        key = (id(recipe), repr(sorted((dim, index.tobytes()) for dim, index in kept.items())).encode())
        if key not in made:
            made[key] = _write(graph, first, recipe, {recipe.permutation[dim]: kept[dim] for dim in kept}, name)
        value.replace_all_uses_with(made[key])
        del graph.initializers[name]


def _write(graph: ir.Graph, first: ir.Node, recipe: Recipe, kept: dict[int, NDArray[np.int64]], name: str) -> ir.Value:
    """The nodes of a recipe in front of `first`, over operands cut to `kept`; the result."""
    value = _cut(graph, recipe.stored, list(kept.items()))
    shape = [kept[dim].size if dim in kept else size for dim, size in enumerate(recipe.stored.shape or ())]
    for step in recipe.steps:
        index = kept.get(step.axis)
        parameters = [
            _cut(graph, parameter, [] if index is None or _size(parameter) == 1 else [(0, index)])
            for parameter in step.parameters
        ]
        value = _add(graph, first, step.node, [value, *parameters], shape, name)
    if recipe.permutation == tuple(range(len(shape))):
        return value
    turn = ir.node("Transpose", [value], {"perm": list(recipe.permutation)})
    turn.outputs[0].type = value.type
    return _add(graph, first, turn, [value], [shape[dim] for dim in recipe.permutation], name)


def _add(
    graph: ir.Graph, first: ir.Node, like: ir.Node, inputs: Sequence[ir.Value], shape: Sequence[object], name: str
) -> ir.Value:
    label = f"{name}_{like.op_type.lower()}"
    node = ir.node(like.op_type, inputs, attributes=dict(like.attributes), name=label)
    result = node.outputs[0]
    result.name, result.type = label, like.outputs[0].type
    result.shape = ir.Shape([int(str(size)) for size in shape])
    graph.insert_before(first, node)
    return result


def _size(value: ir.Value) -> int:
    assert value.const_value is not None
    return value.const_value.size


def _cut(graph: ir.Graph, value: ir.Value, kept: list[tuple[int, NDArray[np.int64]]]) -> ir.Value:
    tensor = value.const_value
    assert tensor is not None
    if kept:
        array = tensor.numpy()
        for dim, index in kept:
            array = np.take(array, index, axis=dim)
        tensor = ir.Tensor(np.ascontiguousarray(array), name=value.name, dtype=tensor.dtype)
    elif value.name is not None and graph.initializers.get(value.name) is value:
        return value
    new = ir.Value(name=value.name, shape=ir.Shape(tensor.numpy().shape), type=value.type, const_value=tensor)
    register_initializer(graph, new)
    return new
