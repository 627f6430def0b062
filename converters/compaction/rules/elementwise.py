"""Rules for elementwise operators with broadcasting: one table of operators, one shape of rule.

Functions that are continuous at every constant they may meet have their transfer here. A constant computed in float64
may differ from the model's by rounding, which a function that jumps may turn into another value: see `step_functions`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import Axis, Constants, Facts, Mask, array_of, axes_of, is_constant, rank
from converters.compaction.registry import FUNCTIONS, Refusal, rule
from converters.compaction.relations import Relation, Tie
from converters.compaction.rules.common import float_attribute, operand, string_attribute
from converters.compaction.rules.step_functions import STEPS, step_transfer
from converters.compaction.rules.twins import Function, affine_twins


def _erf(x: Constants) -> Constants:
    # NumPy has none; a map repeats a few numbers many times
    numbers, index = np.unique(np.asarray(x, np.float64), return_inverse=True)
    values = np.array([math.erf(number) for number in numbers], np.float64)
    return values[index].reshape(np.shape(x))


def _sigmoid(x: Constants) -> Constants:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def _gelu(node: ir.Node) -> Function:
    if string_attribute(node, "approximate", "none") == "tanh":
        return lambda x: 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    return lambda x: 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))


def _elu(node: ir.Node) -> Function:
    alpha = float_attribute(node, "alpha", 1.0)
    return lambda x: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x)


def _celu(node: ir.Node) -> Function:
    alpha = float_attribute(node, "alpha", 1.0)
    return lambda x: np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(np.minimum(x, 0) / alpha))


def _selu(node: ir.Node) -> Function:
    alpha, gamma = (
        float_attribute(node, "alpha", 1.67326319217681884),
        float_attribute(node, "gamma", 1.05070102214813232),
    )
    return lambda x: gamma * np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x)


def _hard_sigmoid(node: ir.Node) -> Function:
    alpha, beta = float_attribute(node, "alpha", 0.2), float_attribute(node, "beta", 0.5)
    return lambda x: np.clip(alpha * x + beta, 0.0, 1.0)


def _clip(node: ir.Node) -> Function:
    if "min" in node.attributes or "max" in node.attributes:  # opset < 11
        low, high = float_attribute(node, "min", -math.inf), float_attribute(node, "max", math.inf)
        return lambda x: np.clip(x, low, high)
    has_low, has_high = operand(node, 1) is not None, operand(node, 2) is not None

    def clip(x: Constants, *bounds: Constants) -> Constants:
        rest = list(bounds)
        low = rest.pop(0) if has_low else -math.inf
        high = rest.pop(0) if has_high else math.inf
        # np.minimum spreads NaN, so an unknown bound gives an unknown result
        return np.asarray(np.minimum(np.maximum(x, low), high))

    return clip


def _leaky(node: ir.Node) -> Function:
    alpha = float_attribute(node, "alpha", 0.01)
    return lambda x: np.where(x < 0, alpha * x, x)


def _swish(node: ir.Node) -> Function:
    alpha = float_attribute(node, "alpha", 1.0)
    return lambda x: x * _sigmoid(alpha * x)


def _product(*factors: Constants) -> Constants:
    result = np.prod(np.broadcast_arrays(*factors), axis=0)
    zero = np.zeros(result.shape, bool)
    infinite = np.zeros(result.shape, bool)
    for factor in np.broadcast_arrays(*factors):
        zero |= factor == 0
        infinite |= np.isinf(factor)
    # activations are taken to be finite, so zero times an unknown is zero
    return np.where(zero & ~infinite, 0.0, result)


def _only_zeros(*factors: Constants) -> Constants:
    return np.where(_product(*factors) == 0, 0.0, np.nan)


def _quotient(x: Constants, y: Constants) -> Constants:
    # quotients are taken to be finite, so zero over an unknown is zero
    return np.where((x == 0) & (y != 0), 0.0, x / y)


def _power(x: Constants, y: Constants) -> Constants:
    # NumPy answers 1 for NaN**0 and 1**NaN, where unknown must stay unknown
    return np.where(np.isnan(x) | np.isnan(y), np.nan, np.power(x, y))


def _total(*terms: Constants) -> Constants:
    # activations are taken to be finite, so minus infinity plus an unknown is minus infinity (a mask)
    spread = np.broadcast_arrays(*terms)
    down = np.logical_or.reduce([term == -np.inf for term in spread])
    up = np.logical_or.reduce([term == np.inf for term in spread])
    with np.errstate(invalid="ignore"):
        return np.where(down & ~up, -np.inf, np.asarray(sum(spread)))


def _mean(*terms: Constants) -> Constants:
    return np.asarray(sum(terms) / len(terms))


def _maximum(*terms: Constants) -> Constants:
    result = terms[0]
    for term in terms[1:]:
        result = np.maximum(result, term)
    return result


def _minimum(*terms: Constants) -> Constants:
    result = terms[0]
    for term in terms[1:]:
        result = np.minimum(result, term)
    return result


def _same(x: Constants) -> Constants:
    return x


def _prelu(x: Constants, slope: Constants) -> Constants:
    return np.where(x >= 0, x, np.where(x == 0, 0.0, slope * x))


def _where(condition: Constants, x: Constants, y: Constants) -> Constants:
    condition, x, y = np.broadcast_arrays(condition, x, y)
    either = np.where(x == y, x, np.nan)
    return np.where(np.isnan(condition), either, np.where(condition != 0, x, y))


def _always(function: Function) -> Callable[[ir.Node], Function]:
    return lambda node: function


# operator: the function of its constants, given the node
CONTINUOUS: dict[str, Callable[[ir.Node], Function]] = {
    "Abs": _always(np.abs),
    "Acos": _always(np.arccos),
    "Acosh": _always(np.arccosh),
    "Add": _always(_total),
    "Asin": _always(np.arcsin),
    "Asinh": _always(np.arcsinh),
    "Atan": _always(np.arctan),
    "Atanh": _always(np.arctanh),
    "Cast": _always(_same),
    "CastLike": _always(lambda x, like: x + 0 * np.where(np.isnan(like), 0, 0)),
    "Celu": _celu,
    "Clip": _clip,
    "Cos": _always(np.cos),
    "Cosh": _always(np.cosh),
    "Div": _always(_quotient),
    "Dropout": _always(lambda x, *rest: x),
    "Elu": _elu,
    "Erf": _always(_erf),
    "Exp": _always(np.exp),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _always(lambda x: x * np.clip(x / 6.0 + 0.5, 0.0, 1.0)),
    "Identity": _always(_same),
    "LeakyRelu": _leaky,
    "Log": _always(np.log),
    "Max": _always(_maximum),
    "Mean": _always(_mean),
    "Min": _always(_minimum),
    "Mish": _always(lambda x: x * np.tanh(np.logaddexp(0.0, x))),
    "Mul": _always(_product),
    "Neg": _always(np.negative),
    "PRelu": _always(_prelu),
    "Pow": _always(_power),
    "Reciprocal": _always(lambda x: 1.0 / x),
    "Relu": _always(lambda x: np.maximum(x, 0.0)),
    "Selu": _selu,
    "Sigmoid": _always(_sigmoid),
    "Sin": _always(np.sin),
    "Sinh": _always(np.sinh),
    "Softplus": _always(lambda x: np.logaddexp(0.0, x)),
    "Softsign": _always(lambda x: x / (1.0 + np.abs(x))),
    "Sqrt": _always(np.sqrt),
    "Sub": _always(lambda x, y: x - y),
    "Sum": _always(_total),
    "Swish": _swish,
    "Tan": _always(np.tan),
    "Tanh": _always(np.tanh),
    "Where": _always(_where),
}
# casts may be step functions, which the node's types decide
FUNCTIONS.update({name: make for name, make in CONTINUOUS.items() if not name.startswith("Cast")})
# elementwise, but their constants are not propagated
OPAQUE = ("BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor")
# right on integers as they stand (Cast looks at the types itself); all others round or may overflow
_EXACT_ON_INTEGERS = ("Cast", "Clip", "Dropout", "Identity", "Max", "Min", "Relu", "Where")
# a constant zero in one operand makes the others unread
_ANNIHILATORS = ("Mul",)


@rule(*dict.fromkeys((*CONTINUOUS, *STEPS, *OPAQUE)))
def relate_elementwise(node: ir.Node) -> list[Relation] | Refusal:
    """Every output axis is tied to the operands that have the same length there; the others broadcast."""
    inputs = [value for value in node.inputs if value is not None]
    output = node.outputs[0]
    out_rank = rank(output)
    if out_rank is None or any(rank(value) is None for value in inputs):
        return Refusal(f"the shapes around this {node.op_type} are not known")
    if any(extra.uses() for extra in node.outputs[1:]):
        return Refusal(f"the second output of this {node.op_type} is used")
    training = operand(node, 2) if node.op_type == "Dropout" else None
    if training is not None and (array_of(training) is None or bool(array_of(training))):
        return Refusal("this Dropout is in training mode, or may be")
    function = CONTINUOUS[node.op_type](node) if node.op_type in CONTINUOUS else None
    jumps = node.op_type in STEPS and not (node.op_type == "Cast" and _is_float(output))
    if output.dtype is not None and output.dtype.is_integer() and node.op_type not in _EXACT_ON_INTEGERS:
        function = _only_zeros if node.op_type == "Mul" else None  # integers round down and wrap around
    relations: list[Relation] = []
    for out_axis in axes_of(output):
        at_axis = _aligned(inputs, out_axis, out_rank)
        members = [axis for axis in at_axis if axis is not None]
        if not members or any(axis.size != out_axis.size for axis in members):
            return Refusal(f"the shapes around this {node.op_type} do not broadcast as declared")
        if jumps:
            transfer: Callable[[Facts], Constants | None] | None = step_transfer(node, inputs, at_axis, out_axis.size)
        else:
            transfer = None if function is None else _transfer(function, inputs, at_axis, out_axis.size)
        unread = _unread_behind_zero(inputs, at_axis) if node.op_type in _ANNIHILATORS else None
        twins = None
        if function is not None and not jumps:
            twins = affine_twins(function, node, inputs, at_axis, out_axis)
        relations.append(Tie(node, members, [out_axis], transfer, unread, twins))
    if function is not None and not jumps and not relations:
        relations.append(_ScalarFact(node, function, inputs, output))
    return relations


class _ScalarFact(Relation):
    """The output has no static axis: what is known is the one number that fills all of it."""

    def __init__(self, node: ir.Node, function: Function, inputs: list[ir.Value], output: ir.Value) -> None:
        super().__init__(node, [])
        self._function, self._inputs, self._output = function, inputs, output

    def forward(self, facts: Facts) -> None:
        numbers = [np.array([facts.scalar(value)]) for value in self._inputs]
        with np.errstate(all="ignore"):
            facts.learn_scalar(self._output, float(self._function(*numbers)[0]))


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _aligned(inputs: list[ir.Value], out_axis: Axis, out_rank: int) -> list[Axis | None]:
    """For each operand its axis at the output axis; None where it is broadcast."""
    aligned: list[Axis | None] = []
    for value in inputs:
        assert value.shape is not None
        dim = out_axis.dim - out_rank + len(value.shape)
        size = value.shape[dim] if dim >= 0 else 1
        aligned.append(Axis(value, dim) if isinstance(size, int) and size > 1 else None)
    return aligned


def _transfer(
    function: Function, inputs: list[ir.Value], at_axis: list[Axis | None], size: int
) -> Callable[[Facts], Constants | None]:
    def transfer(facts: Facts) -> Constants | None:
        known = [
            facts.scalar(value) if axis is None else facts.constants(axis)
            for value, axis in zip(inputs, at_axis, strict=True)
        ]
        if all(item is None or (isinstance(item, float) and math.isnan(item)) for item in known):
            return None
        vectors = [
            np.full(size, np.nan if item is None else item) if not isinstance(item, np.ndarray) else item
            for item in known
        ]
        with np.errstate(all="ignore"):
            return np.broadcast_to(function(*vectors), size).astype(np.float64)

    return transfer


def _unread_behind_zero(inputs: list[ir.Value], at_axis: list[Axis | None]) -> Callable[[Facts, Axis], Mask | None]:
    """Which indices of a factor do not matter because another factor is zero there.

    Where two computed factors are zero at the same place, one of them must really be computed: the first. So
    zeros of a later factor hide the first one only as long as its own zeros lie elsewhere, on the same axis.
    """

    def unread(facts: Facts, asked: Axis) -> Mask | None:
        zero = np.zeros(asked.size, bool)
        own = facts.is_zero(asked)
        elsewhere = facts.scalar(asked.value) == 0 or any(
            facts.is_zero(axis).any() for axis in axes_of(asked.value) if axis != asked
        )
        position = at_axis.index(asked)
        for other, (value, axis) in enumerate(zip(inputs, at_axis, strict=True)):
            # x * x reads x even where it is zero only if something else is the annihilator
            if axis == asked:
                continue
            silences = facts.is_zero(axis) if axis is not None else np.full(asked.size, facts.scalar(value) == 0)
            if is_constant(value) or other < position:
                zero |= silences
            elif not elsewhere:
                zero |= silences & ~own
        return zero

    return unread
