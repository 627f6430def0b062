"""Rules for reductions: kept axes pass through, a summed axis contracts, a mean is corrected for zeros that go."""

from __future__ import annotations

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

_CONSTANT_IN_CONSTANT_OUT = ("ReduceMean", "ReduceMax", "ReduceMin")
# a zero adds nothing to these
_SUMS = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceMean")


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
    count = 1
    for dim in dims:
        size = static_size(x, dim)
        count = count * size if size is not None and count else 0  # 0 = not known

    def constants(source: Axis, facts: Facts) -> Constants | None:
        known = facts.constants(source)
        if known is None:
            return None
        if node.op_type in _CONSTANT_IN_CONSTANT_OUT:
            return known
        if node.op_type == "ReduceSum" and count:
            return known * count
        if node.op_type in ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"):
            return np.where(known == 0, 0.0, np.nan)
        return None

    relations: list[Relation] = []
    out_dim = 0
    for dim in range(x_rank):
        source = axis_of(x, dim)
        if dim in dims:
            if source is not None and node.op_type in _SUMS and _is_real(output):
                relations.append(Contract(node, source, None, fold="zero", reads=_reads_all(source.size)))
            out_dim += keepdims
            continue
        target = axis_of(output, out_dim)
        if source is not None and target is not None:
            relations.append(Tie(node, [source], [target], partial(constants, source)))
        out_dim += 1
    return relations


@fixup("ReduceMean")
def fix_reduce_mean(edit: Edit, node: ir.Node) -> None:
    """The mean over m of n entries, where the others are zero, is n / m times too large."""
    share = 1.0
    for relation in edit.relations(node):
        if isinstance(relation, Contract):
            share *= edit.kept(relation.data).size / relation.data.size
    if share != 1:
        output = node.outputs[0]
        assert output.dtype is not None
        factor = edit.add_initializer(output.name or "mean", np.array(share).astype(output.dtype.numpy()))
        edit.insert_after(node, "Mul", [factor])


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
