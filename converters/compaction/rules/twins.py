"""Which slices come out of an elementwise operator as affine functions of one unknown that they share?

Two ways lead there, with c[i] a constant that fills slice i and y one unknown for all slices (y has no such axis):

    c[i] + y    c[i] - y    c[i] * y    c[i] / y        new twins, of the unknown y or 1 / y
    twins with constants: (s[i] * u + o[i]) * c[i]      twins of the same unknown u
    twins without offset: (s[i] * u) * y                twins of the unknown u * y

Which number the unknown is may differ from place to place; within one place it is the same for all slices.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.axes import Axis, Constants, Facts, Twins, rank

Function = Callable[..., NDArray[np.float64]]

# affine in the operand at this position as long as the others are constants; None: in any one operand
AFFINE = {"Add": None, "Sub": None, "Mul": None, "Div": 0, "Neg": 0, "Identity": 0, "Dropout": 0, "Cast": 0}


def affine_twins(
    function: Function, node: ir.Node, inputs: list[ir.Value], at_axis: list[Axis | None], out_axis: Axis
) -> Callable[[Facts], Twins | None] | None:
    """The twins along an output axis of an operator that `AFFINE` lists.

    Args:
        at_axis: for each operand its axis at the output axis, None where it is broadcast or its length is unknown.
    """

    def twins(facts: Facts) -> Twins | None:
        found = [
            (slot, known) for slot, axis in enumerate(at_axis) if axis is not None and (known := facts.twins(axis))
        ]
        if len(found) > 1:
            return None
        if found:
            slot, known = found[0]
            kept = None
            if AFFINE[node.op_type] in (None, slot):
                kept = _with_constants(function, inputs, at_axis, out_axis.size, slot, known, facts)
            if kept is not None and kept.known.any():
                return kept
        along = _against_one_unknown(node, inputs, at_axis, out_axis, facts)
        if along is None:
            return None
        if found and node.op_type in ("Mul", "Div"):
            scales = np.where(found[0][1].offsets == 0, found[0][1].scales, np.nan)
            return _made_twins(node.op_type, along, scales)
        constants = facts.constants(Axis(inputs[along], _at(inputs[along], out_axis)))
        return None if constants is None else _made_twins(node.op_type, along, constants)

    return twins if node.op_type in AFFINE else None


def _with_constants(
    function: Function,
    inputs: list[ir.Value],
    at_axis: list[Axis | None],
    size: int,
    slot: int,
    known: Twins,
    facts: Facts,
) -> Twins:
    """Twins stay twins under an affine function whose other operands are constants, slice by slice."""

    def at(unknown: Constants) -> Constants:
        operands = [_constants(facts, value, axis, size) for value, axis in zip(inputs, at_axis, strict=True)]
        operands[slot] = unknown
        with np.errstate(all="ignore"):
            return np.asarray(function(*operands), np.float64)

    # f(a * u + b) = f(b) + (f(a + b) - f(b)) * u for an affine f
    shift = at(known.offsets)
    return Twins(at(known.scales + known.offsets) - shift, shift)


def _constants(facts: Facts, value: ir.Value, axis: Axis | None, size: int) -> Constants:
    """Constants of an operand along the output axis, the scalar where it is broadcast, NaN where unknown."""
    known = np.full(size, facts.scalar(value)) if axis is None else facts.constants(axis)
    return np.full(size, np.nan) if known is None else known


def _at(value: ir.Value, out_axis: Axis) -> int:
    """The dimension of an operand that lies at the output axis; negative where it has none."""
    return out_axis.dim - (rank(out_axis.value) or 0) + (rank(value) or 0)


def _against_one_unknown(
    node: ir.Node, inputs: list[ir.Value], at_axis: list[Axis | None], out_axis: Axis, facts: Facts
) -> int | None:
    """The operand that has the axis, where the only other one certainly has not and is not known."""
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(inputs) != 2:
        return None
    along = [slot for slot, axis in enumerate(at_axis) if axis is not None]
    if len(along) != 1:
        return None
    other = inputs[1 - along[0]]
    # a dimension whose size is a symbol may be as long as the axis when the model runs
    absent = is_broadcast(other, _at(other, out_axis))
    return along[0] if absent and math.isnan(facts.scalar(other)) else None


def is_broadcast(value: ir.Value, dim: int) -> bool:
    """Whether the value certainly holds one number for all indices of the dimension at `dim`."""
    return value.shape is not None and (dim < 0 or value.shape[dim] == 1)


def _made_twins(op_type: str, slot: int, c: Constants) -> Twins:
    """What becomes of constants (or of twins without an offset, by their scales), as operand `slot` against y."""
    none = np.where(np.isnan(c), np.nan, 0.0)
    if op_type == "Add":
        return Twins(none + 1, c)
    if op_type == "Sub":
        return Twins(none - 1, c) if slot == 0 else Twins(none + 1, -c)
    if op_type == "Div" and slot == 1:
        with np.errstate(divide="ignore"):
            return Twins(1 / c, none)  # learn_twins takes no infinite scale
    return Twins(c, none)
