"""Rules for operators that address entries by computed indices: the addressed axes stay whole, all others are tied."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import Axis, Constants, Facts, rank, static_size
from converters.compaction.registry import Refusal, rule
from converters.compaction.relations import Relation, Same, Select, Tie
from converters.compaction.rules.common import agreed_constants, axis_of, constant_ints, int_attribute, string_attribute


def _equal(axes: list[Axis | None]) -> list[Axis] | None:
    """The axes if all are there and equally long."""
    present = [axis for axis in axes if axis is not None]
    return present if len(present) == len(axes) and len({axis.size for axis in present}) == 1 else None


@rule("GatherElements")
def relate_gather_elements(node: ir.Node) -> list[Relation] | Refusal:
    """y[i, j] = x[index[i, j], j]; index and y have the same shape."""
    x, index, output = node.inputs[0], node.inputs[1], node.outputs[0]
    size = None if x is None else rank(x)
    if x is None or index is None or size is None or rank(index) != size or rank(output) != size:
        return Refusal("the shapes around this GatherElements are not known")
    addressed = int_attribute(node, "axis", 0) % size
    relations: list[Relation] = []
    for dim in range(size):
        data, places, target = (axis_of(value, dim) for value in (x, index, output))
        if dim == addressed:
            if members := _equal([places, target]):
                relations.append(Tie(node, members[:1], members[1:]))
        elif members := _equal([data, places, target]):
            relations.append(Tie(node, members[:2], members[2:], agreed_constants(members[:1])))
    return relations


@rule("ScatterElements")
def relate_scatter_elements(node: ir.Node) -> list[Relation] | Refusal:
    """y = x, then y[index[i, j], j] = updates[i, j]."""
    x, index, updates, output = *node.inputs[:3], node.outputs[0]
    size = None if x is None else rank(x)
    if size is None or any(value is None or rank(value) != size for value in (index, updates, output)):
        return Refusal(f"the shapes around this {node.op_type} are not known")
    addressed = int_attribute(node, "axis", 0) % size
    replaces = string_attribute(node, "reduction", "none") == "none"
    relations: list[Relation] = []
    for dim in range(size):
        axes = [axis_of(value, dim) for value in (x, index, updates, output)]
        if dim != addressed and (members := _equal(axes)):
            data, _, new, target = members
            relations.append(Tie(node, members[:3], [target], agreed_constants([data, new]) if replaces else None))
    return relations


@rule("GatherND")
def relate_gather_nd(node: ir.Node) -> list[Relation] | Refusal:
    """x: [*batch, *addressed, *rest]; index: [*batch, *places, k]; y: [*batch, *places, *rest]."""
    x, index, output = node.inputs[0], node.inputs[1], node.outputs[0]
    x_rank = None if x is None else rank(x)
    index_rank = None if index is None else rank(index)
    if x is None or index is None or x_rank is None or index_rank is None:
        return Refusal("the shapes around this GatherND are not known")
    batch, depth = int_attribute(node, "batch_dims", 0), static_size(index, index_rank - 1)
    if depth is None or rank(output) != index_rank - 1 + x_rank - batch - depth:
        return Refusal("the shapes around this GatherND are not known")
    relations: list[Relation] = []
    for dim in range(index_rank - 1):
        places, target = axis_of(index, dim), axis_of(output, dim)
        axes = [places, target] if dim >= batch else [axis_of(x, dim), places, target]
        if members := _equal(axes):
            transfer = agreed_constants(members[:1]) if dim < batch else None
            relations.append(Tie(node, members[:-1], members[-1:], transfer))
    for dim in range(batch + depth, x_rank):
        before, after = axis_of(x, dim), axis_of(output, dim - depth - batch + index_rank - 1)
        if before is not None and after is not None:
            relations.append(Same(node, before, after))
    return relations


@rule("ScatterND")
def relate_scatter_nd(node: ir.Node) -> list[Relation] | Refusal:
    """y = x, then y[index[p]] = updates[p]; x: [*addressed, *rest], index: [*places, k], updates: [*places, *rest]."""
    x, index, updates, output = *node.inputs[:3], node.outputs[0]
    x_rank = None if x is None else rank(x)
    index_rank = None if index is None else rank(index)
    depth = None if index is None or index_rank is None else static_size(index, index_rank - 1)
    if x_rank is None or index_rank is None or depth is None or rank(output) != x_rank:
        return Refusal("the shapes around this ScatterND are not known")
    replaces = string_attribute(node, "reduction", "none") == "none"
    relations: list[Relation] = []
    for dim in range(depth, x_rank):
        axes = [axis_of(x, dim), axis_of(updates, dim - depth + index_rank - 1), axis_of(output, dim)]
        if members := _equal(axes):
            relations.append(Tie(node, members[:2], members[2:], agreed_constants(members[:2]) if replaces else None))
    return relations


@rule("TopK")
def relate_top_k(node: ir.Node) -> list[Relation] | Refusal:
    """The axis that is sorted stays whole, because indices count it; the others are tied."""
    return _all_but(node, int_attribute(node, "axis", -1))


@rule("CumSum")
def relate_cumulative_sum(node: ir.Node) -> list[Relation] | Refusal:
    """The axis that is summed along stays whole; the others are tied, and zeros stay zeros."""
    axis = constant_ints(node, 1)
    if axis is None or len(axis) != 1:
        return Refusal("the axis of this CumSum is computed at run time")
    return _all_but(node, axis[0], zeros_stay=True)


@rule("Trilu")
def relate_triangle(node: ir.Node) -> list[Relation] | Refusal:
    """Rows and columns keep their places; the other axes are tied, and zeros stay zeros."""
    return _all_but(node, -1, -2, zeros_stay=True)


def _all_but(node: ir.Node, *whole: int, zeros_stay: bool = False) -> list[Relation] | Refusal:
    x = node.inputs[0]
    size = None if x is None else rank(x)
    if x is None or size is None or any(rank(output) != size for output in node.outputs):
        return Refusal(f"the shapes around this {node.op_type} are not known")
    kept = {dim % size for dim in whole}
    relations: list[Relation] = []
    for dim in range(size):
        if dim not in kept and (members := _equal([axis_of(value, dim) for value in (x, *node.outputs)])):
            relations.append(Tie(node, members[:1], members[1:], _zeros(members[0]) if zeros_stay else None))
    return relations


def _zeros(source: Axis) -> Callable[[Facts], Constants]:
    return lambda facts: np.where(facts.is_zero(source), 0.0, np.nan)


@rule("Tile")
def relate_tile(node: ir.Node) -> list[Relation] | Refusal:
    """Copies of an axis go together with the original; an axis of length 1 that is repeated stays whole."""
    x, output, repeats = node.inputs[0], node.outputs[0], constant_ints(node, 1)
    size = None if x is None else rank(x)
    if x is None or size is None or rank(output) != size or (repeats is not None and len(repeats) != size):
        return Refusal("the shapes around this Tile are not known")
    relations: list[Relation] = []
    for dim in range(size):
        before, after = axis_of(x, dim), axis_of(output, dim)
        if before is None or after is None or after.size % before.size:
            continue
        if after.size == before.size:
            relations.append(Same(node, before, after))
        else:
            relations.append(Select(node, before, after, np.arange(after.size) % before.size, free=False))
    return relations
