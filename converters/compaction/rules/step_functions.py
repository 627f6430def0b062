"""What comes out of functions that jump, for inputs that are constant: Floor, Sign, comparisons, casts to integers.

A constant is computed here in float64, by the model in its own type and order, so the two may differ by rounding. That
is nothing to a continuous function, but at a jump it decides. So the result is claimed in two cases only:

- the constant is *settled*: the function is the same a good deal to the left and to the right of it;
- the constant is *exact*: whatever the type and the order, the model gets just this number, because nothing is rounded
  on the way (stored numbers, zero times anything, sums over zero weights, and functions that select or negate).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.axes import Axis, Constants, Facts, Mask, is_constant
from converters.compaction.rules.common import axis_of, float_attribute, int_attribute, operand

Function = Callable[..., NDArray[np.float64]]

# how far a constant may be off, relative to its size or to 1: far more than float16 rounds, far less than a step
_MARGIN = 1e-2
# how many operators an exact number is followed back through
_FURTHEST = 24
# what comes out is one of the operands, or follows from it without rounding
_SELECTING = (
    "Abs",
    "Ceil",
    "Clip",
    "Dropout",
    "Floor",
    "Identity",
    "Max",
    "Min",
    "Neg",
    "Relu",
    "Round",
    "Sign",
    "Where",
)


def _compare(function: Callable[..., NDArray[np.bool_]]) -> Callable[[ir.Node], Function]:
    return lambda node: lambda *x: function(*x).astype(np.float64)


def _logic(function: Callable[..., NDArray[np.bool_]]) -> Callable[[ir.Node], Function]:
    return lambda node: lambda *x: function(*(item != 0 for item in x)).astype(np.float64)


def _threshold(node: ir.Node) -> Function:
    alpha = float_attribute(node, "alpha", 1.0)
    return lambda x: np.where(x > alpha, x, 0.0)


def _shrink(node: ir.Node) -> Function:
    bias, edge = float_attribute(node, "bias", 0.0), float_attribute(node, "lambd", 0.5)
    return lambda x: np.where(x < -edge, x + bias, np.where(x > edge, x - bias, 0.0))


def _mod(node: ir.Node) -> Function:
    return np.fmod if int_attribute(node, "fmod", 0) else np.mod


def _cast(node: ir.Node) -> Function:
    """To an integer: towards zero, as far as the type reaches; to bool: whether it is not zero."""
    target = node.outputs[0].dtype
    if target == ir.DataType.BOOL:
        return lambda x: (x != 0).astype(np.float64)
    if target is None or not target.is_integer():
        return lambda x: np.full_like(x, np.nan)
    bits = min(target.bitwidth, 53)
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if target.is_signed() else (0.0, 2.0**bits - 1)
    return lambda x: np.where((np.trunc(x) >= low) & (np.trunc(x) <= high), np.trunc(x), np.nan)


# operator: the function, given the node
STEPS: dict[str, Callable[[ir.Node], Function]] = {
    "And": _logic(np.logical_and),
    "Cast": _cast,
    "Ceil": lambda node: np.ceil,
    "Equal": _compare(np.equal),
    "Floor": lambda node: np.floor,
    "Greater": _compare(np.greater),
    "GreaterOrEqual": _compare(np.greater_equal),
    "IsInf": _compare(np.isinf),
    "IsNaN": _compare(np.isnan),
    "Less": _compare(np.less),
    "LessOrEqual": _compare(np.less_equal),
    "Mod": _mod,
    "Not": _logic(np.logical_not),
    "Or": _logic(np.logical_or),
    "Round": lambda node: np.rint,
    "Shrink": _shrink,
    "Sign": lambda node: np.sign,
    "ThresholdedRelu": _threshold,
    "Xor": _logic(np.logical_xor),
}
# between their jumps these are not constant, but neither steeper than 1; how far the constant is from a jump
_DISTANCES: dict[str, Callable[[ir.Node], Function]] = {
    "Shrink": lambda node: lambda x: np.abs(np.abs(x) - float_attribute(node, "lambd", 0.5)),
    "ThresholdedRelu": lambda node: lambda x: np.abs(x - float_attribute(node, "alpha", 1.0)),
    "Mod": lambda node: lambda x, y: np.zeros_like(x),
}


def step_transfer(
    node: ir.Node, inputs: Sequence[ir.Value], at_axis: Sequence[Axis | None], size: int
) -> Callable[[Facts], Constants | None]:
    """The transfer of a function that jumps: its value where every operand is settled or exact, else NaN."""
    function = STEPS[node.op_type](node)

    def transfer(facts: Facts) -> Constants | None:
        operands = list(zip(inputs, at_axis, strict=True))
        known = [_along(facts, value, axis, size) for value, axis in operands]
        if np.isnan(known).all():
            return None
        with np.errstate(all="ignore"):
            if node.op_type in ("And", "Or"):
                return _decided(function, known, 0.0 if node.op_type == "And" else 1.0)
            margins = [
                np.where(np.isnan(exact_constants(facts, value, axis, size)), _MARGIN * np.maximum(1.0, np.abs(c)), 0.0)
                for (value, axis), c in zip(operands, known, strict=True)
            ]
            certain = ~np.isnan(np.sum(known, axis=0)) & _is_settled(node, function, known, margins)
            return np.where(certain, np.asarray(function(*known), np.float64), np.nan)

    return transfer


def _decided(function: Function, known: Sequence[Constants], deciding: float) -> Constants:
    """And is false as soon as one operand is, Or true as soon as one is."""
    settled = np.logical_or.reduce([numbers == deciding for numbers in known], axis=0)
    all_known = ~np.isnan(np.sum(known, axis=0))
    return np.where(settled, deciding, np.where(all_known, function(*known), np.nan))


def _is_settled(node: ir.Node, function: Function, known: Sequence[Constants], margins: Sequence[Constants]) -> Mask:
    total = np.sum(margins, axis=0)
    if node.op_type in _DISTANCES:
        settled: Mask = (total == 0) | (_DISTANCES[node.op_type](node)(*known) > total)
        return settled
    value = function(*known)
    settled = np.ones(total.shape, bool)
    for signs in itertools.product((-1.0, 1.0), repeat=len(known)):
        moved = [numbers + sign * margin for numbers, sign, margin in zip(known, signs, margins, strict=True)]
        settled &= function(*moved) == value
    return settled


def exact_constants(facts: Facts, value: ir.Value, axis: Axis | None, size: int, depth: int = _FURTHEST) -> Constants:
    """Constants that the model gets without any rounding, NaN where that is not certain; shape [size].

    Args:
        axis: where the constants run along; None for a value that is broadcast along that dimension.
    """
    known = _along(facts, value, axis, size)
    if is_constant(value) or (value.dtype is not None and not value.dtype.is_floating_point()):
        return known  # stored numbers; of integers and truth values only exact facts are ever claimed
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx") or axis is None or depth == 0 or np.isnan(known).all():
        return np.full(size, np.nan)
    if node.op_type in ("Conv", "Gemm", "MatMul"):
        return np.where(_is_bias_alone(facts, node, axis), known, np.nan)
    if node.op_type not in (*_SELECTING, "Add", "Sub", "Mul", "Cast"):
        return np.full(size, np.nan)
    operands = []
    for source in node.inputs:
        if source is not None:
            at = axis_of(source, axis.dim - len(value.shape or ())) if _reaches(source, axis) else None
            operands.append(exact_constants(facts, source, at, size, depth - 1))
    if node.op_type == "Mul":
        exact = np.logical_or.reduce([numbers == 0 for numbers in operands], axis=0)
    elif node.op_type in ("Add", "Sub"):
        exact = (operands[0] == 0) & ~np.isnan(operands[1]) | (operands[1] == 0) & ~np.isnan(operands[0])
    else:
        exact = ~np.isnan(np.sum(operands, axis=0))
        if node.op_type == "Cast":
            exact &= value.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE) or (known == 0)
    return np.where(exact, known, np.nan)


def _reaches(source: ir.Value, axis: Axis) -> bool:
    return (
        source.shape is not None
        and axis.value.shape is not None
        and len(source.shape) >= (len(axis.value.shape) - axis.dim)
    )


def _is_bias_alone(facts: Facts, node: ir.Node, axis: Axis) -> Mask:
    """Outputs of a contraction whose weights are all zero: the bias as it is stored, or zero."""
    weight, bias = node.inputs[1], operand(node, 2)
    if node.op_type == "Conv":
        rows = axis_of(weight, 0) if axis.dim == 1 else None
    elif node.op_type == "Gemm":
        rows = axis_of(weight, 0 if int_attribute(node, "transB", 0) else 1) if axis.dim == 1 else None
        if float_attribute(node, "beta", 1.0) != 1.0:
            rows = None
    else:
        rows = axis_of(weight, -1) if axis.dim == len(axis.value.shape or ()) - 1 else None
    if rows is None or rows.size != axis.size or not is_constant(weight) or not (bias is None or is_constant(bias)):
        return np.zeros(axis.size, bool)
    return facts.is_zero(rows)


def _along(facts: Facts, value: ir.Value, axis: Axis | None, size: int) -> Constants:
    known = np.full(size, facts.scalar(value)) if axis is None else facts.constants(axis)
    return np.full(size, np.nan) if known is None or known.size != size else known
