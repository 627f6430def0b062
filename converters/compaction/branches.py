"""Carry out what the plan cuts off or narrows around a node: dead branches, dropped Concat parts, selections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import Axis, Mask, axes_of
from converters.compaction.severing import ConstantOutput, Severed
from converters.compaction.shapes import read_dimension
from converters.compaction.vanishing import dropped_parts

if TYPE_CHECKING:
    from converters.compaction.rewrite import Edit


def cut_branches(edit: Edit) -> None:
    """Replace constant operands and outputs by initializers and drop empty parts of Concats.

    Runs first, so that no fixup ever sees a node of which nothing is left.
    """
    for severed in edit.analysis.severed:
        _replace_operand(edit, severed)
    for node, stated in edit.analysis.of_node.items():
        if node.op_type == "Concat" and node.graph is not None:
            _drop_parts(edit, node, dropped_parts(stated, edit.permission))
    for constant in edit.analysis.constant_outputs:
        _write_output(edit, constant)


def _replace_operand(edit: Edit, severed: Severed) -> None:
    node, slot = severed.node, severed.slot
    output, value = node.outputs[0], node.inputs[slot]
    other = node.inputs[1 - slot] if len(node.inputs) == 2 else None
    if severed.neutral and other is not None and not output.is_graph_output():
        output.replace_all_uses_with(other)
        return
    assert value is not None
    assert value.dtype is not None
    assert output.shape is not None
    shift = len(output.shape) - severed.array.ndim
    masks: list[Mask | None] = [None] * severed.array.ndim
    for axis in axes_of(output):
        if axis.dim >= shift and severed.array.shape[axis.dim - shift] == axis.size:
            masks[axis.dim - shift] = edit.removed(axis)
    if severed.array.ndim > 2 and max(severed.array.shape[2:]) > 1:
        array = severed.array
        for dim, mask in enumerate(masks):
            if mask is not None:
                array = np.compress(~mask, array, axis=dim)
        if array.size == 0:
            return  # nothing of the node is left, so its operand does not matter
        name = output.name or node.op_type
        node.replace_input_with(slot, edit.add_map(name, array.astype(value.dtype.numpy()), node))
        return
    edit.set_input(node, slot, severed.array.astype(value.dtype.numpy()), masks)


def _drop_parts(edit: Edit, node: ir.Node, slots: list[int]) -> None:
    if not slots:
        return
    kept = [value for slot, value in enumerate(node.inputs) if slot not in slots]
    if len(kept) == 1 and kept[0] is not None and not node.outputs[0].is_graph_output():
        node.outputs[0].replace_all_uses_with(kept[0])
        return
    for slot, value in enumerate(kept):
        node.replace_input_with(slot, value)
    node.resize_inputs(len(kept))


def _write_output(edit: Edit, constant: ConstantOutput) -> None:
    """Output = Expand(constant, shape), where unknown sizes are read off the model's inputs."""
    graph, output = edit.graph, constant.value
    assert output.dtype is not None
    name = output.name or "output"
    output.name = f"{name}_before_expand"
    numbers = edit.add_initializer(name, np.asarray(constant.array.astype(output.dtype.numpy())))
    added: list[ir.Node] = []
    parts: list[ir.Value] = []
    for dim in constant.dims:
        if isinstance(dim, int):
            parts.append(edit.add_initializer(name, np.array([dim], np.int64)))
            continue
        value, position = dim
        nodes, size = read_dimension(graph, value, position, f"{name}_size{position}")
        added += nodes
        parts.append(size)
    if all(isinstance(dim, int) for dim in constant.dims):
        target = edit.add_initializer(name, np.array(constant.dims, np.int64))
    else:
        joined = ir.node("Concat", parts, {"axis": 0}, name=f"{name}_sizes")
        target = joined.outputs[0]
        target.shape, target.type = ir.Shape([len(parts)]), ir.TensorType(ir.DataType.INT64)
        added.append(joined)
    expand = ir.node("Expand", [numbers, target], name=f"{name}_expand")
    result = expand.outputs[0]
    result.name, result.type = name, output.type
    result.shape = None if output.shape is None else ir.Shape(list(output.shape))
    for node in [*added, expand]:
        graph.append(node)
    for position, old in enumerate(graph.outputs):
        if old is output:
            graph.outputs[position] = result


def insert_selections(edit: Edit) -> None:
    """Put a Gather in front of every selecting node that is still there; equal ones are shared."""
    made: dict[tuple[ir.Value, int, bytes], ir.Value] = {}
    for selection in edit.selections:
        node = selection.relation.node
        if node is None or node.graph is None:
            continue
        source, wanted = selection.source, ~edit.removed(selection.taken)
        staying = ~edit.removed(source)
        if (wanted == staying).all():
            continue
        slot = selection.slot
        value = node.inputs[slot]
        assert value is not None
        key = (value, source.dim, wanted.tobytes())
        if key not in made:
            made[key] = _gather(edit, node, value, source, wanted, staying)
        node.replace_input_with(slot, made[key])


def _gather(edit: Edit, node: ir.Node, value: ir.Value, source: Axis, wanted: Mask, staying: Mask) -> ir.Value:
    name = f"{value.name}_taken_by_{node.name or node.outputs[0].name}"
    place = np.cumsum(staying) - 1
    index = edit.add_initializer(name, place[wanted].astype(np.int64))
    gather = ir.node("Gather", [value, index], {"axis": source.dim}, name=name)
    result = gather.outputs[0]
    edit.like(result, source.value, name)
    edit.cut(Axis(result, source.dim), ~wanted)
    # in front of its first reader: the readers come in graph order
    edit.graph.insert_before(node, gather)
    return result
