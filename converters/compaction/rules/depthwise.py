"""How is a grouped convolution with one input per group written as a depthwise one that reads through a Gather?"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.axes import Axis, array_of, as_float64
from converters.compaction.relations import Grouped
from converters.compaction.rewrite import Edit


def weight_blocks(node: ir.Node, array: NDArray[np.generic], groups: int) -> NDArray[np.generic]:
    """The weight of a grouped convolution as [groups, outputs per group, inputs per group, *kernel]."""
    if node.op_type == "ConvTranspose":  # stored as [groups * inputs, outputs, *kernel]
        return np.swapaxes(array.reshape(groups, -1, *array.shape[1:]), 1, 2)
    return array.reshape(groups, -1, *array.shape[1:])


def add_to_bias(edit: Edit, node: ir.Node, total: NDArray[np.float64], out_axis: Axis) -> None:
    """Add to the bias of a convolution; total: [O], at full size, as the mask of the output axis slices it."""
    old = array_of(node.inputs[2]) if len(node.inputs) > 2 else None
    weight = array_of(node.inputs[1])
    assert weight is not None
    bias = total if old is None else as_float64(old) + total
    mask = edit.removed(out_axis) if bias.size > 1 else None
    edit.set_input(node, 2, bias.astype(weight.dtype), [mask])


def spread_convolution(edit: Edit, node: ir.Node, relation: Grouped) -> None:
    """Let each output that stays read its input through a Gather, as `Grouped.taken` says.

    An output whose input has gone is its bias, plus what a constant input added; its filter is zero, so that it
    may read any input.
    """
    original = array_of(node.inputs[1])
    assert original is not None
    owner = relation.owner()
    filters = weight_blocks(node, original, relation.groups).reshape(owner.size, 1, *original.shape[2:])
    silent = _outputs_without_input(edit, relation)
    known = edit.facts.constants(relation.data)
    if known is not None:
        # unknown: not read, so its weights are zero; a map behind the node has those that it stands for
        foldable = ~np.isnan(known) if relation.mapped is None else ~np.isnan(known) & ~relation.mapped
        sums = as_float64(filters[silent]).sum(axis=tuple(range(1, filters.ndim)))
        total = np.zeros(owner.size)
        total[silent] = sums * np.where(foldable, known, 0.0)[owner[silent]]
        if total.any():
            add_to_bias(edit, node, total, relation.output)
    filters = filters.copy()
    filters[silent] = 0
    filters = filters[edit.kept(relation.output)]
    taken, staying = relation.taken(edit.permission), edit.kept(relation.data)
    if not np.array_equal(taken, staying):
        edit.gather(node, 0, 1, np.searchsorted(staying, taken))
    if node.op_type == "ConvTranspose":
        filters = filters.reshape(taken.size, -1, *filters.shape[2:])
    edit.set_input(node, 1, np.ascontiguousarray(filters))
    node.attributes["group"] = ir.AttrInt64("group", int(taken.size))


def _outputs_without_input(edit: Edit, relation: Grouped) -> NDArray[np.int64]:
    return np.flatnonzero(edit.removed(relation.data)[relation.owner()])
