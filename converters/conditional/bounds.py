"""Between which numbers does a value lie, whatever the input? Enough to prove that a gate never fires, or always does.

Interval arithmetic backwards from the gate through its small network. Every step is widened by more than its rounding,
so a comparison is decided only where no rounding could decide it otherwise. Activations are taken to be finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from converters.conditional.values import constant_of, dims_of

Array = np.ndarray[Any, np.dtype[np.float64]]
_EPSILON = {ir.DataType.DOUBLE: 2.0**-52, ir.DataType.FLOAT: 2.0**-23, ir.DataType.FLOAT16: 2.0**-10}
_COARSEST = 2.0**-7  # bfloat16
_LARGEST_DEPTH = 60


@dataclass(frozen=True)
class Interval:
    """Bounds that broadcast to the shape of the value: one for all elements, or one for each channel."""

    low: Array
    high: Array

    @property
    def number(self) -> float | None:
        """The one number that the value always is, None if it may be more than one."""
        low, high = float(self.low.min()), float(self.high.max())
        return low if low == high else None

    def hull(self) -> Interval:
        """The same for all elements together."""
        return Interval(np.asarray(self.low.min()), np.asarray(self.high.max()))


_ANYTHING = Interval(np.asarray(-np.inf), np.asarray(np.inf))
_BOOLEAN = Interval(np.asarray(0.0), np.asarray(1.0))


class Bounds:
    """Intervals of a graph's values, computed on demand."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, Interval] = {}

    def of(self, value: ir.Value | None, depth: int = 0) -> Interval:
        """The interval of a value; everything where nothing is known."""
        if value is None:
            return _ANYTHING
        if value not in self._known:
            self._known[value] = _ANYTHING  # for a chain that is too long
            if depth < _LARGEST_DEPTH:
                with np.errstate(all="ignore"):
                    self._known[value] = self._compute(value, depth)
        return self._known[value]

    def _compute(self, value: ir.Value, depth: int) -> Interval:
        array = constant_of(value)
        if array is not None:
            if array.dtype.kind not in "biuf" or not array.size:
                return _ANYTHING
            exact = array.astype(np.float64)
            return Interval(exact, exact)
        default = _BOOLEAN if value.dtype == ir.DataType.BOOL else _ANYTHING
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx") or node.outputs[0] is not value:
            return default
        rule = _RULES.get(node.op_type)
        if rule is None:
            return default
        found = rule(node, [self.of(operand, depth + 1) for operand in node.inputs])
        if found is None or np.isnan(found.low).any() or np.isnan(found.high).any():
            return default
        return found


Rule = Callable[[ir.Node, Sequence[Interval]], Interval | None]


def _widened(node: ir.Node, low: Array, high: Array, scale: Array | float | None = None, terms: int = 1) -> Interval:
    """Room for the rounding of a sum of that many terms; `scale` bounds the sum of their magnitudes."""
    dtype = node.outputs[0].dtype
    epsilon = _EPSILON.get(dtype, _COARSEST) if dtype is not None else _COARSEST
    size = np.maximum(np.abs(low), np.abs(high)) if scale is None else scale
    room = (terms + 8) * epsilon * size
    return Interval(np.asarray(low - room), np.asarray(high + room))


def _corners(node: ir.Node, a: Interval, b: Interval, function: Callable[[Array, Array], Array]) -> Interval:
    values = [function(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
    low, high = np.minimum.reduce(values), np.maximum.reduce(values)
    return _widened(node, low, high)


def _add(node: ir.Node, of: Sequence[Interval]) -> Interval:
    return _widened(node, of[0].low + of[1].low, of[0].high + of[1].high)


def _sub(node: ir.Node, of: Sequence[Interval]) -> Interval:
    return _widened(node, of[0].low - of[1].high, of[0].high - of[1].low)


def _product(a: Array, b: Array) -> Array:
    return np.where((a == 0) | (b == 0), 0.0, a * b)  # activations are finite


def _mul(node: ir.Node, of: Sequence[Interval]) -> Interval:
    return _corners(node, of[0], of[1], _product)


def _div(node: ir.Node, of: Sequence[Interval]) -> Interval | None:
    divisor = of[1]
    return None if ((divisor.low <= 0) & (divisor.high >= 0)).any() else _corners(node, of[0], divisor, np.divide)


def _increasing(function: Callable[[Array], Array], least: float, most: float) -> Rule:
    """Increasing functions that round, but never beyond their limits."""

    def rule(node: ir.Node, of: Sequence[Interval]) -> Interval:
        found = _widened(node, function(of[0].low), function(of[0].high), 1.0)
        return Interval(np.clip(found.low, least, most), np.clip(found.high, least, most))

    return rule


def _hard_sigmoid(node: ir.Node, of: Sequence[Interval]) -> Interval:
    alpha, beta = node.attributes.get("alpha"), node.attributes.get("beta")
    slope = 0.2 if alpha is None else alpha.as_float()
    offset = 0.5 if beta is None else beta.as_float()
    if slope < 0:
        return Interval(np.asarray(0.0), np.asarray(1.0))
    found = _widened(node, slope * of[0].low + offset, slope * of[0].high + offset)
    return Interval(np.clip(found.low, 0, 1), np.clip(found.high, 0, 1))


def _relu(node: ir.Node, of: Sequence[Interval]) -> Interval:
    return Interval(np.maximum(of[0].low, 0), np.maximum(of[0].high, 0))


def _clip(node: ir.Node, of: Sequence[Interval]) -> Interval | None:
    low, high = of[0].low, of[0].high
    if "min" in node.attributes or "max" in node.attributes:
        return None
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        low, high = np.maximum(low, of[1].low), np.maximum(high, of[1].high)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        low, high = np.minimum(low, of[2].low), np.minimum(high, of[2].high)
    return Interval(low, high)


def _same(node: ir.Node, of: Sequence[Interval]) -> Interval:
    return of[0]


def _hull(node: ir.Node, of: Sequence[Interval]) -> Interval:
    return of[0].hull()


def _average(node: ir.Node, of: Sequence[Interval]) -> Interval:
    """A mean lies between the smallest and the largest; channels (axis 1) are kept apart where they stay in place."""
    found, dims = of[0], dims_of(node.inputs[0])
    per_channel = dims is not None and found.low.ndim == len(dims) >= 2 and found.low.size == found.low.shape[1]
    if not (per_channel and node.op_type == "GlobalAveragePool"):
        found = found.hull()
    terms = 1 << 20  # of a mean over a whole image; its rounding is relative to the largest term
    return _widened(node, found.low, found.high, np.maximum(np.abs(found.low), np.abs(found.high)), terms)


def _average_of_windows(node: ir.Node, of: Sequence[Interval]) -> Interval:
    """Windows may reach into zero padding."""
    found = of[0].hull()
    return _average(node, [Interval(np.minimum(found.low, 0), np.maximum(found.high, 0))])


def _cast(node: ir.Node, of: Sequence[Interval]) -> Interval | None:
    source = node.inputs[0]
    if source is not None and source.dtype == ir.DataType.BOOL:
        return of[0]
    number = of[0].number
    return of[0].hull() if number in (0.0, 1.0) else None


def _contraction(
    node: ir.Node, weight: Array, x: Interval, bias: Interval | None, *, per_input: bool, padded: bool
) -> Interval:
    """weight: [outputs, inputs, ...]; result [outputs]."""
    matrix = weight.reshape(weight.shape[0], weight.shape[1], -1)
    low, high = x.low, x.high
    if per_input and x.low.size == weight.shape[1]:
        low, high = x.low.reshape(1, -1, 1), x.high.reshape(1, -1, 1)
    else:
        low, high = np.asarray(x.low.min()), np.asarray(x.high.max())
    if padded:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    positive, negative = np.maximum(matrix, 0), np.minimum(matrix, 0)
    least = (_product(positive, low) + _product(negative, high)).sum((1, 2))
    most = (_product(positive, high) + _product(negative, low)).sum((1, 2))
    size = _product(np.abs(matrix), np.maximum(np.abs(low), np.abs(high))).sum((1, 2))
    if bias is not None:
        least, most = least + bias.low.reshape(-1), most + bias.high.reshape(-1)
        size = np.where(size == 0, 0, size + np.maximum(np.abs(bias.low), np.abs(bias.high)).reshape(-1))
    return _widened(node, least, most, size, matrix.shape[1] * matrix.shape[2])


def _gemm(node: ir.Node, of: Sequence[Interval]) -> Interval | None:
    weight = constant_of(node.inputs[1])
    numbers = {name: node.attributes.get(name) for name in ("alpha", "beta")}
    if weight is None or any(a is not None and a.as_float() != 1.0 for a in numbers.values()):
        return None
    if (transposed := node.attributes.get("transA")) is not None and transposed.as_int():
        return None
    transposed = node.attributes.get("transB")
    matrix = weight if transposed is not None and transposed.as_int() else weight.T
    bias = of[2] if len(node.inputs) > 2 and node.inputs[2] is not None else None
    found = _contraction(node, matrix.astype(np.float64), of[0], bias, per_input=True, padded=False)
    return Interval(found.low.reshape(1, -1), found.high.reshape(1, -1))


def _matmul(node: ir.Node, of: Sequence[Interval]) -> Interval | None:
    weight, dims = constant_of(node.inputs[1]), dims_of(node.inputs[0])
    if weight is None or weight.ndim != 2 or dims is None or len(dims) < 2:
        return None
    found = _contraction(node, weight.T.astype(np.float64), of[0].hull(), None, per_input=False, padded=False)
    return Interval(found.low.reshape(1, -1), found.high.reshape(1, -1))


def _conv(node: ir.Node, of: Sequence[Interval]) -> Interval | None:
    weight = constant_of(node.inputs[1])
    groups = node.attributes.get("group")
    if weight is None or (groups is not None and groups.as_int() != 1):
        return None
    bias = of[2] if len(node.inputs) > 2 and node.inputs[2] is not None else None
    pads = node.attributes.get("pads")
    padded = "auto_pad" in node.attributes or (pads is not None and any(pads.as_ints()))
    found = _contraction(node, weight.astype(np.float64), of[0], bias, per_input=True, padded=padded)
    shape = (1, -1, *[1] * (weight.ndim - 2))
    return Interval(found.low.reshape(shape), found.high.reshape(shape))


def _compare(above: bool, or_equal: bool) -> Rule:
    def rule(node: ir.Node, of: Sequence[Interval]) -> Interval:
        a, b = (of[0], of[1]) if above else (of[1], of[0])
        certain = a.low >= b.high if or_equal else a.low > b.high
        impossible = a.high < b.low if or_equal else a.high <= b.low
        return Interval(np.where(certain, 1.0, 0.0), np.where(impossible, 0.0, 1.0))

    return rule


def _not(node: ir.Node, of: Sequence[Interval]) -> Interval:
    return Interval(1 - of[0].high, 1 - of[0].low)


def _and(node: ir.Node, of: Sequence[Interval]) -> Interval:
    return Interval(np.minimum(of[0].low, of[1].low), np.minimum(of[0].high, of[1].high))


def _or(node: ir.Node, of: Sequence[Interval]) -> Interval:
    return Interval(np.maximum(of[0].low, of[1].low), np.maximum(of[0].high, of[1].high))


def _where(node: ir.Node, of: Sequence[Interval]) -> Interval:
    decided = of[0].number
    if decided is not None:
        return of[1] if decided else of[2]
    return Interval(np.minimum(of[1].low, of[2].low), np.maximum(of[1].high, of[2].high))


def _arg_max(node: ir.Node, of: Sequence[Interval]) -> Interval | None:
    """Of several channels: the one that lies above all others, where one does."""
    axis, dims = node.attributes.get("axis"), dims_of(node.inputs[0])
    position = 0 if axis is None else axis.as_int()
    low, high = of[0].low, of[0].high
    if dims is None or position % len(dims) != 1 or low.ndim != len(dims) or low.size != dims[1]:
        return None
    low, high = low.reshape(-1), high.reshape(-1)
    best = int(low.argmax())
    if not all(low[best] > high[other] for other in range(low.size) if other != best):
        return None
    return Interval(np.asarray(float(best)), np.asarray(float(best)))


def _select(node: ir.Node, of: Sequence[Interval]) -> Interval:
    """Channels read at constant indices."""
    axis, index = node.attributes.get("axis"), constant_of(node.inputs[1])
    dims = dims_of(node.inputs[0])
    low, high = of[0].low, of[0].high
    position = 0 if axis is None else axis.as_int()
    if index is None or index.ndim > 1 or dims is None or low.ndim != len(dims) or low.size != low.shape[position]:
        return of[0].hull()
    where = index.astype(np.int64)
    return Interval(np.take(low, where, axis=position), np.take(high, where, axis=position))


_SIGMOID = _increasing(lambda x: np.asarray(1 / (1 + np.exp(-x))), 0.0, 1.0)
_RULES: dict[str, Rule] = {
    "Add": _add,
    "And": _and,
    "ArgMax": _arg_max,
    "AveragePool": _average_of_windows,
    "Cast": _cast,
    "Clip": _clip,
    "Conv": _conv,
    "Div": _div,
    "Flatten": _hull,
    "Gather": _select,
    "Gemm": _gemm,
    "GlobalAveragePool": _average,
    "Greater": _compare(above=True, or_equal=False),
    "GreaterOrEqual": _compare(above=True, or_equal=True),
    "HardSigmoid": _hard_sigmoid,
    "Identity": _same,
    "Less": _compare(above=False, or_equal=False),
    "LessOrEqual": _compare(above=False, or_equal=True),
    "MatMul": _matmul,
    "Mul": _mul,
    "Not": _not,
    "Or": _or,
    "ReduceMax": _hull,
    "ReduceMean": _average,
    "ReduceMin": _hull,
    "Relu": _relu,
    "Reshape": _hull,
    "Sigmoid": _SIGMOID,
    "Slice": _hull,
    "Squeeze": _hull,
    "Sub": _sub,
    "Tanh": _increasing(np.tanh, -1.0, 1.0),
    "Unsqueeze": _hull,
    "Where": _where,
}
