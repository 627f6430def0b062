"""Rules for reductions: kept axes pass through, and a reduced axis loses constants whose share is added again.

With m of n entries left, and c the constants that went,

    sum = sum over the others + sum(c)          mean = (m / n) * mean over the others + sum(c) / n
    maximum = max(maximum over the others, max(c))

and alike for absolute values, squares and minima. Of the other reductions at most zeros go: adding to a sum under a
root would take the root back, which overflows in half precision, and a sum of exponentials counts every entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import Axis, Constants, Facts, Liveness, Mask, rank, static_size
from converters.compaction.registry import Refusal, fixup, rule
from converters.compaction.relations import Contract, Relation, Tie
from converters.compaction.rewrite import Edit
from converters.compaction.rules.common import (
    axis_of,
    constant_ints,
    int_attribute,
    ints_attribute,
    operand,
)
from converters.compaction.rules.deviations import Deviations, add_deviations, deviations_of

# a zero adds nothing to these
_SUMS = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceMean")
# what an entry adds to these
_TERMS: dict[str, Callable[[Constants], Constants]] = {
    "ReduceMean": np.asarray,
    "ReduceSum": np.asarray,
    "ReduceL1": np.abs,
    "ReduceSumSquare": np.square,
}
# operator: the operator of its result and of what went, and what went as one number
_EXTREMA: dict[str, tuple[str, Callable[[Constants], np.float64]]] = {
    "ReduceMax": ("Max", np.max),
    "ReduceMin": ("Min", np.min),
}


def reduced_dims(node: ir.Node) -> set[int] | None:
    """The dimensions that a reduction removes, None when they are computed at run time."""
    x = node.inputs[0]
    size = rank(x) if x is not None else None
    if size is None:
        return None
    if operand(node, 1) is not None:
        dims = constant_ints(node, 1)
        if dims is None:
            return None
    else:
        dims = ints_attribute(node, "axes") or []
    if not dims:
        return set() if int_attribute(node, "noop_with_empty_axes", 0) else set(range(size))
    return {dim % size for dim in dims}


@rule(
    "ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceProd",
    "ReduceLogSum", "ReduceLogSumExp",
)  # fmt: skip
def relate_reduction(node: ir.Node) -> list[Relation] | Refusal:
    """Axes that stay are tied; a summed axis may lose zeros; all other reduced axes stay whole."""
    x, output = node.inputs[0], node.outputs[0]
    dims = reduced_dims(node)
    if x is None or dims is None or rank(output) is None:
        return Refusal(f"the axes of this {node.op_type} are not constant")
    x_rank = rank(x)
    assert x_rank is not None
    keepdims = int_attribute(node, "keepdims", 1)
    count = _entries(x, dims)

    def constants(source: Axis, facts: Facts) -> Constants | None:
        known = facts.constants(source)
        if known is None:
            return None
        if node.op_type == "ReduceMean" or node.op_type in _EXTREMA:
            return known
        if node.op_type in _TERMS and count:
            return _TERMS[node.op_type](known) * count
        if node.op_type == "ReduceL2" and count:
            return np.abs(known) * math.sqrt(count)
        return np.where(known == 0, 0.0, np.nan) if node.op_type in _SUMS else None

    relations: list[Relation] = []
    out_dim = 0
    for dim in range(x_rank):
        source = axis_of(x, dim)
        if dim in dims:
            if source is not None and _is_real(output):
                relations += _reduced(node, source, count, alone=len(dims) == 1)
            out_dim += keepdims
            continue
        target = axis_of(output, out_dim)
        if source is not None and target is not None:
            relations.append(Tie(node, [source], [target], partial(constants, source)))
        out_dim += 1
    return relations


def _entries(x: ir.Value, dims: set[int]) -> int:
    """How many entries are reduced to one, 0 where that is not known."""
    sizes = [static_size(x, dim) for dim in dims]
    return math.prod(size or 0 for size in sizes)


def _reduced(node: ir.Node, data: Axis, count: int, *, alone: bool) -> list[Relation]:
    deviations = deviations_of(node, data) if alone else None
    if deviations is not None:
        return [deviations]
    # of a sum over several axes, an index that goes takes its constant along as often as the others have entries
    folds = node.op_type in _EXTREMA or node.op_type == "ReduceMean" or (node.op_type in _TERMS and count > 0)
    if not folds and node.op_type not in _SUMS:
        return []
    return [Contract(node, data, None, fold="bias" if folds else "zero", reads=_reads_all(data.size))]


@fixup("ReduceMean", "ReduceSum", "ReduceL1", "ReduceSumSquare")
def fix_sum(edit: Edit, node: ir.Node) -> None:
    """Scale a mean, and add what the constants that went had added.

    Axis after axis: mean over all = share * mean over what stays + offset.
    """
    share, offset = 1.0, 0.0
    for relation in edit.relations(node):
        if isinstance(relation, Deviations):
            add_deviations(edit, node, relation)
            return
        if isinstance(relation, Contract):
            size = relation.data.size
            offset += share * float(_TERMS[node.op_type](_gone(edit, relation)).sum()) / size
            share *= edit.kept(relation.data).size / size
    last = node
    if node.op_type != "ReduceMean":
        x = node.inputs[0]
        assert x is not None
        offset *= _entries(x, reduced_dims(node) or set())
    elif share != 1:
        last = edit.insert_after(node, "Mul", [_number(edit, node, share)])
    if offset != 0:
        edit.insert_after(last, "Add", [_number(edit, node, offset)])


@fixup("ReduceMax", "ReduceMin")
def fix_extremum(edit: Edit, node: ir.Node) -> None:
    """Compare the result with the constants that went."""
    operator, extremum = _EXTREMA[node.op_type]
    gone = [_gone(edit, relation) for relation in edit.relations(node) if isinstance(relation, Contract)]
    if any(constants.size for constants in gone):
        edit.insert_after(node, operator, [_number(edit, node, float(extremum(np.concatenate(gone))))])


def _gone(edit: Edit, relation: Contract) -> Constants:
    """The constants that went, zeros too."""
    goes = edit.removed(relation.data)
    constants = edit.facts.constants(relation.data)
    return np.zeros(0) if constants is None else constants[goes]


def _number(edit: Edit, node: ir.Node, value: float) -> ir.Value:
    output = node.outputs[0]
    assert output.dtype is not None
    return edit.add_initializer(output.name or "number", np.array(value).astype(output.dtype.numpy()))


def _reads_all(size: int) -> Callable[[Liveness, Facts], Mask]:
    def reads(live: Liveness, facts: Facts) -> Mask:
        return np.ones(size, bool)

    return reads


@rule("ArgMax", "ArgMin")
def relate_arg(node: ir.Node) -> list[Relation] | Refusal:
    """Axes that stay are tied; the reduced axis stays whole, because the result counts its indices."""
    x, output = node.inputs[0], node.outputs[0]
    x_rank = rank(x) if x is not None else None
    if x is None or x_rank is None or rank(output) is None:
        return Refusal(f"the shapes around this {node.op_type} are not known")
    reduced = int_attribute(node, "axis", 0) % x_rank
    keepdims = int_attribute(node, "keepdims", 1)
    relations: list[Relation] = []
    for dim in range(x_rank):
        if dim == reduced:
            continue
        source, target = axis_of(x, dim), axis_of(output, dim - (0 if keepdims or dim < reduced else 1))
        if source is not None and target is not None:
            relations.append(Tie(node, [source], [target]))
    return relations


def _is_real(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()
