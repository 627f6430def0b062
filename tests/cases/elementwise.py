"""Elementwise operators: what becomes of an exact zero, and broadcasting in every position."""

from __future__ import annotations

import re

import numpy as np

from cases.sandwich import DENSE_LIVE, dense, image, image_params
from cases.table import add, batch_norm, case, channels, gate, model, vector, weight

# Functions of one input, in a Gemm sandwich: where f(0) is not 0 it goes into the reader's bias.
UNARY = {
    "relu": "m = Relu(g)",
    "leaky_relu": "m = LeakyRelu<alpha=0.2>(g)",
    "tanh": "m = Tanh(g)",
    "elu": "m = Elu<alpha=1.5>(g)",
    "selu": "m = Selu(g)",
    "celu": "m = Celu<alpha=1.5>(g)",
    "erf": "m = Erf(g)",
    "sine": "m = Sin(g)",
    "absolute": "m = Abs(g)",
    "negative": "m = Neg(g)",
    "sign": "m = Sign(g)",
    "softsign": "m = Softsign(g)",
    "hard_swish": "m = HardSwish(g)",
    "mish": "m = Mish(g)",
    "gelu": "m = Gelu(g)",
    "gelu_by_tanh": 'm = Gelu<approximate="tanh">(g)',
    "thresholded_relu": "m = ThresholdedRelu<alpha=0.1>(g)",
    "shrink": "m = Shrink<lambd=0.3, bias=0.1>(g)",
    "floor": "m = Floor(g)",
    "silu_spelled_out": "s = Sigmoid(g)\n m = Mul(g, s)",
    "gelu_spelled_out": "a = Div(g, root2)\n e = Erf(a)\n f = Add(e, one)\n p = Mul(g, f)\n m = Mul(p, half)",
    "sigmoid": "m = Sigmoid(g)",
    "softplus": "m = Softplus(g)",
    "exponential": "m = Exp(g)",
    "hard_sigmoid": "m = HardSigmoid<alpha=0.3, beta=0.4>(g)",
    "cosine": "m = Cos(g)",
    "arc_cosine_of_tanh": "t = Tanh(g)\n m = Acos(t)",
    "clip_at_zero": "m = Clip(g, zero)",
    "clip_between": "m = Clip(g, below, half)",
    "clip_whose_minimum_is_above_zero": "m = Clip(g, half)",
    "clip_whose_maximum_is_below_zero": 'm = Clip(g, "", below)',
    "square": "m = Pow(g, two)",
    "square_by_product": "m = Mul(g, g)",
    "cube": "m = Pow(g, three)",
    "power_zero": "p = Pow(g, zero)\n q = Add(p, g)\n m = Tanh(q)",
    "power_of_two_to_it": "m = Pow(two, g)",
    "square_root_of_absolute": "a = Abs(g)\n m = Sqrt(a)",
    "offset_added": "m = Add(g, half)",
    "subtracted_from_one": "m = Sub(one, g)",
    "divided_by_constant": "m = Div(g, three)",
    "reciprocal_of_shifted_square": "p = Mul(g, g)\n q = Add(p, half)\n m = Reciprocal(q)",
    "constant_over_shifted_square": "p = Mul(g, g)\n q = Add(p, half)\n m = Div(two, q)",
    "maximum_with_constant": "m = Max(g, half)",
    "minimum_with_constant": "m = Min(g, below, half)",
    "mean_with_constant": "m = Mean(g, half)",
    "sum_of_three": "m = Sum(g, half, g)",
    "logarithm_of_one_plus": "a = Abs(g)\n b = Add(a, one)\n m = Log(b)",
    "logarithm_undone_by_exponential": "a = Abs(g)\n l = Log(a)\n m = Exp(l)",
    "inverse_sine_of_tanh": "t = Tanh(g)\n m = Asin(t)",
    "inverse_tangent": "m = Atan(g)",
    "inverse_hyperbolic_sine": "m = Asinh(g)",
    "inverse_hyperbolic_tangent": "t = Tanh(g)\n u = Mul(t, half)\n m = Atanh(u)",
    "inverse_hyperbolic_cosine": "t = Mul(g, g)\n u = Add(t, two)\n m = Acosh(u)",
    "hyperbolic_cosine": "m = Cosh(g)",
    "hyperbolic_sine": "m = Sinh(g)",
    "tangent": "t = Tanh(g)\n m = Tan(t)",
    "ceiling": "m = Ceil(g)",
    "rounding": "m = Round(g)",
    "cast_to_integers_and_back": "i = Cast<to=6>(g)\n m = Cast<to=1>(i)",
    "cast_to_float64_and_back": "i = Cast<to=11>(g)\n m = Cast<to=1>(i)",
    "cast_to_bool_and_back": "a = Relu(g)\n i = Cast<to=9>(a)\n c = Cast<to=1>(i)\n m = Sub(c, g)",
    "cast_like": "m = CastLike(g, half)",
    "is_nan_and_where": "i = IsNaN(g)\n m = Where(i, half, g)",
    "compared_with_zero": "c = Greater(g, zero)\n m = Where(c, g, half)",
    "compared_or_equal_to_zero": "c = GreaterOrEqual(g, zero)\n m = Where(c, two, g)",
    "equal_to_zero_negated": "a = Relu(g)\n c = Equal(a, zero)\n d = Not(c)\n m = Cast<to=1>(d)",
    "logic_of_two_comparisons": "c = Less(g, half)\n d = Greater(g, below)\n e = And(c, d)\n f = Xor(c, d)\n"
    " p = Where(e, g, two)\n m = Where(f, p, half)",
}
SCALARS = {
    "zero": 0.0, "one": 1.0, "two": 2.0, "three": 3.0, "half": 0.5, "below": -0.25, "root2": float(np.sqrt(2.0))
}  # fmt: skip


def unary(name: str, text: str) -> None:
    def build(r):
        used = {k: v for k, v in SCALARS.items() if k in re.findall(r"\w+", text)}
        return dense(r, text, **used)

    options = {"no_double": "Celu takes no float64"} if name == "celu" else {}
    add(f"elementwise_{name}", __name__, build, params=DENSE_LIVE, **options)


for _name, _text in UNARY.items():
    unary(_name, _text)


# A second, ungated layer v decides element by element between the gated features and another number.
DECISIONS = {
    "greater": "c = Greater(v, zero)\n m = Where(c, g, half)",
    "greater_or_equal": "c = GreaterOrEqual(v, zero)\n m = Where(c, g, half)",
    "less": "c = Less(v, zero)\n m = Where(c, g, half)",
    "less_or_equal": "c = LessOrEqual(v, zero)\n m = Where(c, g, half)",
    "equal": "f = Relu(v)\n c = Equal(f, zero)\n m = Where(c, g, half)",
    "not": "a = Greater(v, zero)\n c = Not(a)\n m = Where(c, g, half)",
    "and": "a = Greater(v, zero)\n b = Less(v, two)\n c = And(a, b)\n m = Where(c, g, half)",
    "or": "a = Greater(v, two)\n b = Less(v, zero)\n c = Or(a, b)\n m = Where(c, g, half)",
    "xor": "a = Greater(v, zero)\n b = Less(v, half)\n c = Xor(a, b)\n m = Where(c, g, half)",
    "is_infinite": "l = Relu(v)\n k = Log(l)\n c = IsInf(k)\n m = Where(c, g, half)",
    "is_not_a_number": "k = Log(v)\n c = IsNaN(k)\n m = Where(c, g, half)",
}


def decision(name: str, text: str) -> None:
    def build(r):
        used = {k: v for k, v in SCALARS.items() if k in re.findall(r"\w+", text)}
        return dense(r, "v = Gemm<transB=1>(x, w3, b3)\n" + text, w3=weight(r, 8, 6), b3=vector(r, 8), **used)

    add(f"decided_by_{name}", __name__, build, equality="a closed unit still switches between zero and another number")


for _name, _text in DECISIONS.items():
    decision(_name, _text)


@case(params=image_params(5))
def gate_with_an_explicit_batch_axis(r):
    return image(r, "m = Mul(g, z)", z=channels(gate(r, 8, (1, 4)))[None])


@case(params=image_params(5) + 30 * 5)
def position_weights_per_channel_and_pixel(r):
    return image(r, "m = Mul(g, z)", size="5,6", z=weight(r, 8, 5, 6) + 2)


@case(equality="the offset differs from pixel to pixel, so a closed channel is no constant")
def offset_per_pixel(r):
    return image(r, "m = Add(g, z)", size="5,6", z=weight(r, 1, 5, 6))


@case(nothing="a closed pixel row is not a channel")
def gate_over_pixels(r):
    return image(r, "m = Mul(g, z)", size="5,6", closed=(), z=gate(r, 5, (0, 2)).reshape(1, 5, 1))


@case(params=image_params(6) + 6)
def offset_per_channel_before_a_padded_conv(r):
    return image(r, "m = Add(offset, g)", offset=channels(vector(r, 8)))


@case(params=image_params(5) + 5)
def scalar_times_and_channel_product(r):
    return image(r, "a = Mul(three, g)\n m = Mul(a, z)", three=3.0, z=channels(vector(r, 8)))


@case(params=image_params(5) + 5)
def prelu_with_a_slope_per_channel(r):
    return image(r, "m = PRelu(g, slope)", slope=channels(vector(r, 8)))


@case(params=image_params(5))
def prelu_with_one_slope(r):
    return image(r, "m = PRelu(g, slope)", slope=np.asarray([0.3], np.float32))


@case(params=DENSE_LIVE + 6 * 5 + 5)
def product_with_an_ungated_branch(r):
    text = "v = Gemm<transB=1>(x, w3, b3)\n s = Sigmoid(v)\n m = Mul(s, g)"
    return dense(r, text, w3=weight(r, 8, 6), b3=vector(r, 8))


@case(params=3 * 6 + 3 + 3 * 6 + 3 + 3 * 3 + 3)  # SwiGLU: closed in either branch is closed
def product_of_two_branches_closed_in_different_places(r):
    text = "v = Gemm<transB=1>(x, w3, b3)\n s = Sigmoid(v)\n u = Mul(s, z)\n m = Mul(u, g)"
    return dense(r, text, w3=weight(r, 8, 6), b3=vector(r, 8), z=gate(r, 8, (1, 2, 7)))


@case(params=7 * 6 + 7 + 7 * 6 + 7 + 3 * 7 + 3)  # closed in both branches: only 1 goes
def sum_of_two_branches_closed_in_different_places(r):
    text = "v = Gemm<transB=1>(x, w3, b3)\n u = Mul(v, z)\n m = Add(u, g)"
    return dense(r, text, w3=weight(r, 8, 6), b3=vector(r, 8), z=gate(r, 8, (1, 2, 7)))


@case(params=DENSE_LIVE + 6 * 5 + 5)
def difference_of_two_branches_closed_in_the_same_places(r):
    text = "v = Gemm<transB=1>(x, w3, b3)\n u = Mul(v, z)\n m = Sub(u, g)"
    return dense(r, text, w3=weight(r, 8, 6), b3=vector(r, 8), z=gate(r, 8))


@case(equality="a maximum with zero still reads the other branch")
def maximum_of_two_branches(r):
    text = "v = Gemm<transB=1>(x, w3, b3)\n m = Max(v, g)"
    return dense(r, text, w3=weight(r, 8, 6), b3=vector(r, 8))


@case(params=6 * 5 + 4 * 5 + 5 * 3)
def outer_sum_of_a_vector_and_rows(r):
    return model(
        """(float[N,S,6] x, float[N,1,4] v) => (float[N,S,3] y) {
            h = MatMul(x, w1)
            u = MatMul(v, w3)
            a = Add(h, u)
            g = Mul(a, gate)
            t = Tanh(g)
            y = MatMul(t, w2)
        }""",
        w1=weight(r, 6, 8), w3=weight(r, 4, 8), gate=gate(r, 8), w2=weight(r, 8, 3),
    )  # fmt: skip


@case(equality="a table over two axes, broadcast into each other")
def outer_product_of_two_vectors(r):
    return model(
        """(float[N,6] x, float[N,4] v) => (float[N,3] y) {
            h = MatMul(x, w1)
            g = Mul(h, gate)
            u = MatMul(v, w3)
            gc = Unsqueeze(g, last)
            ur = Unsqueeze(u, middle)
            o = Mul(gc, ur)
            f = Flatten(o)
            y = MatMul(f, w2)
        }""",
        w1=weight(r, 6, 8), w3=weight(r, 4, 5), gate=gate(r, 8), w2=weight(r, 40, 3), last=[2], middle=[1],
    )  # fmt: skip


@case(params=DENSE_LIVE)
def mask_by_where_with_a_zero(r):
    mask = np.ones(8, bool)
    mask[[1, 4, 6]] = False
    return model(
        """(float[N,6] x) => (float[N,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Where(mask, h, zero)
            m = Relu(g)
            y = Gemm<transB=1>(m, w2, b2)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), mask=mask, zero=0.0, w2=weight(r, 3, 8), b2=vector(r, 3),
    )  # fmt: skip


@case(params=DENSE_LIVE + 5)
def where_chooses_a_constant_vector(r):
    mask = np.ones(8, bool)
    mask[[1, 4, 6]] = False
    return model(
        """(float[N,6] x) => (float[N,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Where(mask, h, other)
            m = Relu(g)
            y = Gemm<transB=1>(m, w2, b2)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), mask=mask, other=vector(r, 8), w2=weight(r, 3, 8), b2=vector(r, 3),
    )  # fmt: skip


@case(equality="each branch loses the units that the other provides, but the axis stays whole")
def where_chooses_between_two_branches(r):
    mask = np.ones(8, bool)
    mask[[1, 4, 6]] = False
    return model(
        """(float[N,6] x) => (float[N,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            k = Gemm<transB=1>(x, w3, b3)
            g = Where(mask, h, k)
            y = Gemm<transB=1>(g, w2, b2)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), mask=mask, w3=weight(r, 8, 6), b3=vector(r, 8), w2=weight(r, 3, 8),
        b2=vector(r, 3),
    )  # fmt: skip


@case(params=DENSE_LIVE)
def remainder_of_division(r):
    return dense(r, "m = Mod<fmod=1>(g, half)", half=0.5)


@case(params=image_params(5) + 4 * 5)
def addition_of_a_closed_branch_to_a_constant(r):
    text = "n = BatchNormalization(g, bn_s, bn_b, bn_m, bn_v)\n m = Mul(n, n)"
    return image(r, text, pad=0, **batch_norm(r, 8, "bn"))
