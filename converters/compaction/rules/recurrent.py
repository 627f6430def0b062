"""Rules for LSTM, GRU and RNN: input features contract with W; units of the state go as a whole.

X: [S, N, I], W: [D, G * H, I], R: [D, G * H, H], B: [D, 2 * G * H] with D directions and G gates.
Every step computes W x + R h + Wb + Rb, so what a constant feature adds goes into Wb.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import Facts, Liveness, Mask, array_of, as_float64, static_size
from converters.compaction.registry import Refusal, fixup, rule
from converters.compaction.relations import Contract, Relation
from converters.compaction.rewrite import Edit
from converters.compaction.rules.common import axis_of, operand
from converters.compaction.rules.recurrent_units import Units, relate_units


@rule("LSTM", "GRU", "RNN")
def relate_recurrent(node: ir.Node) -> list[Relation] | Refusal:
    """Features that no gate reads, that are zero or constant may go, and whole units; all other axes stay."""
    x, weight = node.inputs[0], node.inputs[1]
    array = array_of(weight)
    data, columns = axis_of(x, 2), axis_of(weight, 2)
    if array is None:
        return Refusal(f"the weights of this {node.op_type} are computed at run time")
    if data is None and array.shape[2] == 1:
        units = relate_units(node, None)
        return [] if units is None else [units]
    if data is None or columns is None or data.size != columns.size:
        return Refusal(f"the number of features of this {node.op_type} is not known")
    bias = operand(node, 3)
    units = relate_units(node, data)

    def reads(live: Liveness, facts: Facts) -> Mask:
        rows = axis_of(weight, 1)
        needed = np.ones(array.shape[1], bool) if units is None or rows is None else live.needed(rows)
        read: Mask = (array[:, needed] != 0).any(axis=(0, 1))
        return read

    foldable = bias is None or array_of(bias) is not None
    relations: list[Relation] = [Contract(node, data, columns, fold="bias" if foldable else "zero", reads=reads)]
    # last, so that going backwards the units say first which rows of W are needed
    return relations if units is None else [*relations, units]


@fixup("LSTM", "GRU", "RNN")
def fix_recurrent(edit: Edit, node: ir.Node) -> None:
    """Count the units that stay, and add what removed constants contributed to Wb, the first half of B."""
    removed: Mask | None = None
    for relation in edit.relations(node):
        if isinstance(relation, Units):
            removed = edit.removed(relation.columns)
            node.attributes["hidden_size"] = ir.AttrInt64("hidden_size", int((~removed).sum()))
    for relation in edit.relations(node):
        if not isinstance(relation, Contract):
            continue
        index, constants = edit.constants_to_fold(relation)
        if index.size == 0:
            continue
        weight = node.inputs[1]
        array = array_of(weight)
        assert array is not None
        added = as_float64(np.take(array, index, axis=2)) @ constants  # [D, G * H]
        rows = static_size(weight, 1) if weight is not None else None
        assert rows is not None
        old = array_of(operand(node, 3))
        bias = np.zeros((array.shape[0], 2 * rows)) if old is None else as_float64(old).copy()
        bias[:, :rows] += added
        masks = None if removed is None else [None, np.tile(removed, bias.shape[1] // removed.size)]
        edit.set_input(node, 3, bias.astype(array.dtype), masks)
