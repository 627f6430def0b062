"""Rules for Conv and ConvTranspose: channels contract, groups stay even, a padded border sees zeros."""

from __future__ import annotations

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
    is_constant,
    static_size,
)
from converters.compaction.registry import Refusal, fixup, rule
from converters.compaction.relations import Contract, Fold, Grouped, Pin, Relation, Tie
from converters.compaction.rewrite import Edit
from converters.compaction.rules.common import (
    axes_at,
    axis_of,
    columns_read,
    constants_of,
    int_attribute,
    ints_attribute,
    merge_twins,
    need_of,
    operand,
    row_constants,
    string_attribute,
)
from converters.compaction.rules.depthwise import add_to_bias, spread_convolution, weight_blocks


def _meets_border(node: ir.Node) -> bool:
    """Whether some output position sees fewer than all kernel taps, so that a constant does not stay one."""
    if node.op_type == "ConvTranspose":
        return True  # the border of a transposed convolution sees fewer taps even without padding
    if string_attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return True
    return any(ints_attribute(node, "pads") or [])


def _may_change(bias: ir.Value | None) -> bool:
    """Whether folded constants can be added to the bias: it is stored, or there is none yet."""
    return bias is None or is_constant(bias)


@rule("Conv", "ConvTranspose")
def relate_convolution(node: ir.Node) -> list[Relation] | Refusal:
    """x: [N, C, *space]; Conv w: [O, C/g, *kernel], ConvTranspose w: [C, O/g, *kernel]; b: [O]; y: [N, O, *space]."""
    x, weight, bias, output = node.inputs[0], node.inputs[1], operand(node, 2), node.outputs[0]
    if x is None or weight is None or weight.shape is None:
        return Refusal("a convolution whose weight has an unknown shape")
    array = array_of(weight)
    if array is None:
        return Refusal("the weight of this convolution is computed at run time")
    groups = int_attribute(node, "group", 1)
    transposed = node.op_type == "ConvTranspose"
    in_size = array.shape[0] if transposed else array.shape[1] * groups
    out_size = array.shape[1] * groups if transposed else array.shape[0]
    if static_size(x, 1) not in (in_size, None if groups == 1 else in_size) or static_size(output, 1) != out_size:
        return Refusal("the channel count of this convolution is not known")
    if groups == 1:
        return _relate_dense(node, x, weight, bias, output, array, transposed)
    return _relate_grouped(node, x, weight, bias, output, array, groups)


def _relate_dense(
    node: ir.Node,
    x: ir.Value,
    weight: ir.Value,
    bias: ir.Value | None,
    output: ir.Value,
    array: NDArray[np.generic],
    transposed: bool,
) -> list[Relation]:
    out_dim, in_dim = (1, 0) if transposed else (0, 1)
    out_axis, in_axis = axis_of(output, 1), axis_of(x, 1)
    border = _meets_border(node)
    out_size = array.shape[out_dim]

    def output_constants(facts: Facts) -> Constants:
        zero_rows = constants_of(facts, weight, out_dim, out_size) == 0
        inputs = constants_of(facts, x, 1, array.shape[in_dim])
        sums = row_constants(array, out_dim, in_dim, inputs, only_zero_inputs=border, zero_rows=zero_rows)
        return sums if bias is None else sums + constants_of(facts, bias, 0, out_size)

    def reads(live: Liveness, facts: Facts) -> Mask:
        return columns_read(array, out_dim, in_dim, need_of(live, out_axis, out_size))

    relations: list[Relation] = []
    if out_axis is not None:
        rows = [axis for axis in (axis_of(weight, out_dim), axis_of(bias, 0)) if axis is not None]
        relations.append(Tie(node, rows, [out_axis], output_constants))
    if in_axis is not None:
        fold: Fold = "representative" if border or not _may_change(bias) else "bias"
        data_weight = axis_of(weight, in_dim)
        relations.append(Contract(node, in_axis, data_weight, fold=fold, reads=reads, folds_twins=fold == "bias"))
    return relations


def _relate_grouped(
    node: ir.Node,
    x: ir.Value,
    weight: ir.Value,
    bias: ir.Value | None,
    output: ir.Value,
    array: NDArray[np.generic],
    groups: int,
) -> list[Relation]:
    blocks = weight_blocks(node, array, groups)
    outs, ins = blocks.shape[1:3]
    border = _meets_border(node)
    transposed = node.op_type == "ConvTranspose"

    def output_constants(facts: Facts) -> Constants:
        inputs = constants_of(facts, x, 1, groups * ins).reshape(groups, ins)
        if transposed:
            zero_rows = (blocks == 0).all(axis=tuple(range(2, blocks.ndim)))
        else:
            zero_rows = (constants_of(facts, weight, 0, groups * outs) == 0).reshape(groups, outs)
        sums = np.where(zero_rows, 0.0, np.nan)
        for group in np.flatnonzero(~np.isnan(inputs).all(axis=1)):
            sums[group] = row_constants(
                blocks[group], 0, 1, inputs[group], only_zero_inputs=border, zero_rows=zero_rows[group]
            )
        total: Constants = sums.ravel()
        return total if bias is None else total + constants_of(facts, bias, 0, total.size)

    def reads(live: Liveness, facts: Facts) -> Mask:
        needed = need_of(live, axis_of(output, 1), groups * outs).reshape(groups, outs)
        nonzero = (blocks != 0).any(axis=tuple(range(3, blocks.ndim)))  # [groups, outs, ins]
        read: Mask = (nonzero & needed[:, :, None]).any(axis=1).ravel()
        return read

    in_axis, out_axis = axis_of(x, 1), axis_of(output, 1)
    assert in_axis is not None  # groups > 1 means more than one channel on both sides
    assert out_axis is not None
    # the fixup cuts the weight group by group, the generic slicing must not
    by_group = axes_at([weight], 1) if not transposed else [*axes_at([weight], 0), *axes_at([weight], 1)]
    rows = [*(axes_at([weight], 0) if not transposed else []), *axes_at([bias], 0)]
    return [
        Tie(node, rows, [out_axis], output_constants),
        Grouped(node, in_axis, out_axis, groups, constants_fold=not border and _may_change(bias), reads=reads),
        *(Pin(node, axis, "the weight of a grouped convolution is cut group by group") for axis in by_group),
    ]


@fixup("Conv", "ConvTranspose")
def fix_convolution(edit: Edit, node: ir.Node) -> None:
    """Fold removed constants into the bias or a representative; rebuild grouped weights."""
    for relation in edit.relations(node):
        if isinstance(relation, Contract):
            _fold_maps(edit, node, relation)
            _fold(edit, node, relation)
        elif isinstance(relation, Grouped):
            _fold_maps(edit, node, relation)
            _rebuild_grouped(edit, node, relation)


def _fold(edit: Edit, node: ir.Node, relation: Contract) -> None:
    index, constants = edit.constants_to_fold(relation)
    twins = edit.twins_to_fold(relation)
    if index.size == 0 and twins is None:
        return
    weight, output = node.inputs[1], node.outputs[0]
    original = array_of(weight)
    assert original is not None
    assert weight is not None
    in_dim = 0 if node.op_type == "ConvTranspose" else 1
    masks = [edit.removed(Axis(weight, dim)) if size > 1 else None for dim, size in enumerate(original.shape)]
    removed_part = as_float64(np.take(original, index, axis=in_dim))
    scale = constants.reshape([-1 if dim == in_dim else 1 for dim in range(original.ndim)])
    contribution = (removed_part * scale).sum(axis=in_dim)  # [O, *kernel]
    if relation.fold == "bias":
        if twins is not None:
            merged, added = merge_twins(as_float64(original), in_dim, *twins)
            edit.set_input(node, 1, merged.astype(original.dtype), masks)
            contribution += added
        total = contribution.reshape(contribution.shape[0], -1).sum(axis=1)
        if total.any():
            add_to_bias(edit, node, total, Axis(output, 1))
        return
    representative = edit.representatives[relation]
    known = edit.facts.constants(relation.data)
    assert known is not None
    array = as_float64(original)
    where: list[slice | int] = [slice(None)] * array.ndim
    where[in_dim] = representative
    array[tuple(where)] += contribution / known[representative]
    edit.set_input(node, 1, array.astype(original.dtype), masks)


def _fold_maps(edit: Edit, node: ir.Node, relation: Contract | Grouped) -> None:
    """Add what removed input-independent channels contributed, as a map behind the convolution."""
    added, original = edit.maps.get(relation), array_of(node.inputs[1])
    if added is None or original is None:
        return
    out_axis = axis_of(node.outputs[0], 1)
    if out_axis is not None:
        added = added[edit.kept(out_axis)]
    name = node.outputs[0].name or "map"
    value = edit.add_map(name, added[None].astype(original.dtype), node)
    edit.insert_after(node, "Add", [value])


def _rebuild_grouped(edit: Edit, node: ir.Node, relation: Grouped) -> None:
    if relation.spread:
        spread_convolution(edit, node, relation)
        return
    groups = relation.groups
    goes = edit.removed(relation.data).reshape(groups, -1)
    out_goes = edit.removed(relation.output).reshape(groups, -1)
    if not goes.any() and not out_goes.any():
        return
    original = array_of(node.inputs[1])
    assert original is not None
    blocks = weight_blocks(node, original, groups)
    known = edit.facts.constants(relation.data)
    if known is not None and relation.mapped is not None:
        known = np.where(relation.mapped, np.nan, known)  # the map behind the node has them
    total = np.zeros(relation.output.size)
    rows = []
    alive = np.flatnonzero(~out_goes.all(axis=1))
    for group in alive:
        rows.append(blocks[group][~out_goes[group]][:, ~goes[group]])
        folded = np.flatnonzero(goes[group])
        if known is not None and folded.size:
            constants = known.reshape(groups, -1)[group][folded]
            constants = np.where(np.isnan(constants), 0.0, constants)  # unread, so its weights are zero, or in the map
            part = as_float64(blocks[group][:, folded])
            sums = part.reshape(*part.shape[:2], -1).sum(axis=2)
            total.reshape(groups, -1)[group] = sums @ constants
    if total.any():
        add_to_bias(edit, node, total, relation.output)
    if node.op_type == "ConvTranspose":
        rows = [np.swapaxes(row, 0, 1) for row in rows]
    edit.set_input(node, 1, np.ascontiguousarray(np.concatenate(rows)))
    node.attributes["group"] = ir.AttrInt64("group", int(alive.size))
