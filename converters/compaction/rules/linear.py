"""Rules for MatMul and Gemm in every orientation, with a constant weight on either side or on none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.axes import (
    Axis,
    Constants,
    Facts,
    Liveness,
    Mask,
    array_of,
    as_float64,
    axes_of,
    rank,
    static_size,
)
from converters.compaction.registry import Refusal, fixup, rule
from converters.compaction.relations import Contract, Fold, Relation, Tie
from converters.compaction.rewrite import Edit
from converters.compaction.rules.common import (
    axis_of,
    columns_read,
    constants_of,
    float_attribute,
    int_attribute,
    merge_twins,
    need_of,
    operand,
    row_constants,
)


@rule("Gemm")
def relate_gemm(node: ir.Node) -> list[Relation] | Refusal:
    """y = alpha * A' B' + beta * C; A': [M, K], B': [K, N], C broadcasts to [M, N]."""
    a, b, c, output = node.inputs[0], node.inputs[1], operand(node, 2), node.outputs[0]
    if a is None or b is None or rank(a) != 2 or rank(b) != 2:
        return Refusal("a Gemm whose operands have unknown rank")
    row_dim, inner_a = (1, 0) if int_attribute(node, "transA", 0) else (0, 1)
    inner_b, column_dim = (1, 0) if int_attribute(node, "transB", 0) else (0, 1)
    relations = _relate_product(
        node, a, b, output, row_dim, inner_a, inner_b, column_dim, float_attribute(node, "alpha", 1.0), gemm=True
    )
    if isinstance(relations, Refusal) or c is None:
        return relations
    return _with_addend(node, relations, c, output, float_attribute(node, "beta", 1.0))


def _with_addend(
    node: ir.Node, relations: list[Relation], c: ir.Value, output: ir.Value, beta: float
) -> list[Relation] | Refusal:
    """Join the Gemm's C to the output axes, and its constants to the output's."""
    c_rank = rank(c)
    if c_rank is None:
        return Refusal("a Gemm whose C has an unknown rank")
    joined: list[Relation] = []
    for relation in relations:
        if not isinstance(relation, Tie):
            joined.append(relation)
            continue
        out_axis = relation.outputs[0]
        c_axis = axis_of(c, out_axis.dim - 2 + c_rank) if out_axis.dim - 2 + c_rank >= 0 else None

        def transfer(
            facts: Facts, product: Tie = relation, out_axis: Axis = out_axis, c_axis: Axis | None = c_axis
        ) -> Constants | None:
            sums = None if product.transfer is None else product.transfer(facts)
            if sums is None:
                return None
            added = np.full(out_axis.size, facts.scalar(c)) if c_axis is None else facts.constants(c_axis)
            return None if added is None else sums + beta * added

        inputs = relation.inputs if c_axis is None else (*relation.inputs, c_axis)
        joined.append(Tie(node, inputs, relation.outputs, transfer))
    return joined


@rule("MatMul")
def relate_matmul(node: ir.Node) -> list[Relation] | Refusal:
    """a: [*batch, M, K] or [K]; b: [*batch, K, N] or [K]; batch dimensions broadcast."""
    a, b, output = node.inputs[0], node.inputs[1], node.outputs[0]
    if a is None or b is None:
        return Refusal("a MatMul with a missing operand")
    rank_a, rank_b = rank(a), rank(b)
    if rank_a is None or rank_b is None or rank(output) is None:
        return Refusal("a MatMul whose operands have unknown rank")
    if rank_a < 2 or rank_b < 2:
        return _relate_vector_product(node, a, b, output, rank_a, rank_b)
    relations = _relate_product(node, a, b, output, rank_a - 2, rank_a - 1, rank_b - 2, rank_b - 1, 1.0, gemm=False)
    if isinstance(relations, Refusal):
        return relations
    # batch dimensions: index i of the output needs index i of both (or the one that is broadcast)
    out_rank = max(rank_a, rank_b)
    for from_end in range(3, out_rank + 1):
        out_axis = axis_of(output, out_rank - from_end)
        if out_axis is None:
            continue
        members = [
            axis
            for value, size in ((a, rank_a), (b, rank_b))
            if size >= from_end and (axis := axis_of(value, size - from_end)) is not None
        ]
        if not members or any(axis.size != out_axis.size for axis in members):
            return Refusal("a MatMul whose batch dimensions do not agree")
        relations.append(Tie(node, members, [out_axis], _zero_if_any_is_zero(members)))
    return relations


def _relate_vector_product(
    node: ir.Node, a: ir.Value, b: ir.Value, output: ir.Value, rank_a: int, rank_b: int
) -> list[Relation] | Refusal:
    """[*batch, M, K] x [K] -> [*batch, M], [K] x [*batch, K, N] -> [*batch, N], [K] x [K] -> []."""
    inner_b = max(rank_b - 2, 0)
    data, weight = axis_of(a, rank_a - 1), axis_of(b, inner_b)
    if data is None or weight is None or data.size != weight.size:
        return Refusal("a MatMul with a vector whose length is not known")
    if array_of(a) is not None:
        data, weight = weight, data
    matrix, gone = (a, rank_a - 1) if rank_a > 1 else (b, inner_b)
    relations: list[Relation] = []
    for dim in range(max(rank_a, rank_b) if max(rank_a, rank_b) > 1 else 0):
        source, target = axis_of(matrix, dim), axis_of(output, dim if dim < gone else dim - 1)
        if dim != gone and source is not None and target is not None:
            relations.append(Tie(node, [source], [target], _zero_if_any_is_zero([source])))

    def reads(live: Liveness, facts: Facts) -> Mask:
        vector = array_of(weight.value)
        return np.ones(data.size, bool) if vector is None or vector.ndim > 1 else vector != 0

    return [*relations, Contract(node, data, weight, fold="zero", reads=reads)]


def _zero_if_any_is_zero(members: list[Axis]) -> Callable[[Facts], Constants]:
    def transfer(facts: Facts) -> Constants:
        zero = np.zeros(members[0].size, bool)
        for axis in members:
            zero |= facts.is_zero(axis)
        return np.where(zero, 0.0, np.nan)

    return transfer


def _relate_product(
    node: ir.Node,
    a: ir.Value,
    b: ir.Value,
    output: ir.Value,
    row_dim: int,
    inner_a: int,
    inner_b: int,
    column_dim: int,
    alpha: float,
    *,
    gemm: bool,
) -> list[Relation] | Refusal:
    out_rank = rank(output)
    if out_rank is None:
        return Refusal("a matrix product whose result has an unknown rank")
    inner = static_size(a, inner_a)
    if inner is None or inner != static_size(b, inner_b):
        if static_size(a, inner_a) is None and static_size(b, inner_b) is None:
            inner = None  # contracted over a dynamic axis: nothing to cut there, the other axes still tie
        else:
            return Refusal("a matrix product whose inner dimension is not known on both sides")
    row_axis, column_axis = axis_of(output, out_rank - 2), axis_of(output, out_rank - 1)
    a_rows, b_columns = axis_of(a, row_dim), axis_of(b, column_dim)
    array_a = array_of(a) if rank(a) == 2 else None
    array_b = array_of(b) if rank(b) == 2 else None

    def column_constants(facts: Facts) -> Constants | None:
        return _side_constants(facts, b, array_b, column_dim, inner_b, a, inner_a, alpha)

    def row_constants_(facts: Facts) -> Constants | None:
        return _side_constants(facts, a, array_a, row_dim, inner_a, b, inner_b, alpha)

    relations: list[Relation] = []
    if row_axis is not None:
        if a_rows is None:
            return Refusal("a matrix product whose row dimension is not known")
        relations.append(Tie(node, [a_rows], [row_axis], row_constants_))
    if column_axis is not None:
        if b_columns is None:
            return Refusal("a matrix product whose column dimension is not known")
        relations.append(Tie(node, [b_columns], [column_axis], column_constants))
    if inner is None or inner == 1:
        return relations
    data, weight = Axis(a, inner_a), Axis(b, inner_b)
    if array_b is None and array_a is not None:
        data, weight = weight, data
    # a constant meets no border here; without a constant weight it cannot be folded
    fold: Fold = "bias" if array_b is not None or (array_a is not None and not gemm) else "zero"

    def reads(live: Liveness, facts: Facts) -> Mask:
        if array_b is not None:
            return columns_read(array_b, column_dim, inner_b, need_of(live, column_axis, array_b.shape[column_dim]))
        if array_a is not None:
            return columns_read(array_a, row_dim, inner_a, need_of(live, row_axis, array_a.shape[row_dim]))
        return np.ones(data.size, bool)

    if array_a is not None and array_b is not None:
        return Refusal("a product of two constants")
    folds_twins = array_b is not None or (array_a is not None and not gemm)
    relations.append(Contract(node, data, weight, fold=fold, reads=reads, folds_twins=folds_twins))
    return relations


def _side_constants(
    facts: Facts,
    value: ir.Value,
    array: NDArray[np.generic] | None,
    outer: int,
    inner: int,
    other: ir.Value,
    other_inner: int,
    alpha: float,
) -> Constants | None:
    """Constants of the output along the outer axis of `value`: zero slices, or sums over known inputs."""
    size = static_size(value, outer)
    assert size is not None
    zero_rows = constants_of(facts, value, outer, size) == 0
    if array is None:
        return np.where(zero_rows, 0.0, np.nan)
    inputs = constants_of(facts, other, other_inner, array.shape[inner])
    return alpha * row_constants(array, outer, inner, inputs, only_zero_inputs=False, zero_rows=zero_rows)


@fixup("Gemm", "MatMul")
def fix_product(edit: Edit, node: ir.Node) -> None:
    """Add what removed constants contributed, and move the weights of removed twins to the one that stays.

    What is added goes to the Gemm's C, or into an Add behind the MatMul.
    """
    for relation in edit.relations(node):
        if not isinstance(relation, Contract) or relation.weight is None:
            continue
        _fold_maps(edit, node, relation)
        index, constants = edit.constants_to_fold(relation)
        twins = edit.twins_to_fold(relation)
        if index.size == 0 and twins is None:
            continue
        weight, inner = relation.weight
        on_columns = weight is node.inputs[1]
        array = array_of(weight)
        assert array is not None
        total = np.zeros(array.shape[1 - inner])
        if index.size:
            part = as_float64(np.take(array, index, axis=inner))
            total += part @ constants if inner == 1 else constants @ part
        if twins is not None:
            merged, added = merge_twins(as_float64(array), inner, *twins)
            masks = [edit.removed(axis) if (axis := axis_of(weight, dim)) is not None else None for dim in (0, 1)]
            edit.set_input(node, 1 if on_columns else 0, merged.astype(array.dtype), masks)
            total += added
        if total.any():
            _add_to_output(edit, node, total, array.dtype, on_columns=on_columns)


def _fold_maps(edit: Edit, node: ir.Node, relation: Contract) -> None:
    """Add what removed input-independent features contributed, as a map behind the MatMul; y: [N, *space, O]."""
    added, original = edit.maps.get(relation), array_of(node.inputs[1])
    if added is None or original is None:
        return
    output = node.outputs[0]
    array = np.moveaxis(added, 0, -1)
    for axis in axes_of(output):
        if axis.dim > 0:
            array = np.take(array, edit.kept(axis), axis=axis.dim - 1)
    if array.size:
        name = output.name or "map"
        value = edit.add_map(name, array[None].astype(original.dtype), node, range(1, array.ndim))
        edit.insert_after(node, "Add", [value])


def _add_to_output(
    edit: Edit, node: ir.Node, total: Constants, dtype: np.dtype[np.generic], *, on_columns: bool
) -> None:
    output = node.outputs[0]
    out_rank = rank(output)
    assert out_rank is not None
    out_axis = axis_of(output, out_rank - 1 if on_columns else out_rank - 2)
    mask = None if out_axis is None else edit.removed(out_axis)
    if node.op_type == "Gemm":
        total = total * float_attribute(node, "alpha", 1.0)
        old = operand(node, 2)
        old_array = array_of(old)
        beta = float_attribute(node, "beta", 1.0)
        if old is None or (old_array is not None and beta != 0):
            base = np.zeros(1) if old_array is None else as_float64(old_array)
            summed = base + (total if old is None else total / beta)
            if old is None:
                node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
            masks: list[Mask | None] = [*[None] * (summed.ndim - 1), mask]
            if summed.ndim == 2 and summed.shape[0] > 1:
                masks[0] = edit.removed(Axis(output, 0))
            edit.set_input(node, 2, summed.astype(dtype), masks)
            return
    shaped = total if on_columns else total[:, None]
    added_masks: list[Mask | None] = [mask] if on_columns else [mask, None]
    added = edit.add_initializer(output.name or "bias", shaped.astype(dtype), added_masks)
    edit.insert_after(node, "Add", [added])
