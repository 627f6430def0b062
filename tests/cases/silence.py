"""What may a zero hide, when the zero itself is computed? Where two zeros meet, one of them must stay computed.

The zeros here are fragile: a ReLU cuts a constant that only these units read, so as soon as nobody needs the unit,
the constant goes unfolded and the unit becomes whatever its bias says.
"""

from __future__ import annotations

import numpy as np

from cases.table import case, channels, gate, model, vector, weight

# c: the constant channels 1, 4 and 6 of h; a and b: unit 2 of each reads channel 1 alone and is relu(1 - 3 c) = 0
_FRAGILE = """
    h0 = MatMul(x, w1)
    h1 = Mul(h0, gate)
    h = Add(h1, offset)
    a0 = MatMul(h, wa)
    a1 = Add(a0, bias)
    a = Relu(a1)
    b0 = MatMul(h, wb)
    b1 = Add(b0, bias)
    b = Relu(b1)
"""


def fragile(r, signature, tail, **weights):
    """Values a and b of 4 units each, whose unit 2 is a zero that only holds while it is computed."""

    def reads(factor):
        w = weight(r, 4, 8).T.copy()
        w[:, 2] = 0
        w[1] = [0, 0, factor, 0]
        return w

    offset = vector(r, 8)
    offset[1] = 1.0
    return model(
        f"{signature} {{ {_FRAGILE} {tail} }}",
        w1=weight(r, 6, 8), gate=gate(r, 8), offset=offset, wa=reads(-3.0), wb=reads(-2.0),
        bias=np.float32([0.1, 1.0, 1.0, 0.2]), **weights,
    )  # fmt: skip


@case(equality="two factors are zero at the same unit, and the product is an output")
def product_of_two_zeros_that_are_computed(r):
    return fragile(r, "(float[N,6] x) => (float[N,4] y)", "y = Mul(a, b)")


@case(equality="queries and keys are zero at the same feature, which other readers keep")
def scores_of_two_zeros_that_are_computed(r):
    return fragile(
        r, "(float[N,S,6] x) => (float[N,S,S] y, float[N,S,4] p, float[N,S,4] q)",
        "t = Transpose<perm=[0,2,1]>(b) y = MatMul(a, t) p = Mul(a, open) q = Mul(b, open)",
        open=np.float32([1, 1, 0, 1]),
    )  # fmt: skip


@case(equality="both operands of an Einsum are zero at the same feature, which other readers keep")
def einsum_of_two_zeros_that_are_computed(r):
    return fragile(
        r, "(float[N,S,6] x) => (float[N,S,T] y, float[N,S,4] p, float[N,S,4] q)",
        'y = Einsum<equation="nsk,ntk->nst">(a, b) p = Mul(a, open) q = Mul(b, open)',
        open=np.float32([1, 1, 0, 1]),
    )  # fmt: skip


@case(equality="constants would be folded into a bias that is an input of the model")
def conv_of_constants_whose_bias_is_computed(r):
    return model(
        """(float[N,3,H,W] x, float[4] bias) => (float[N,4,H,W] y) {
            h = Conv(x, w1)
            g = Mul(h, gate)
            o = Add(g, offset)
            y = Conv(o, w2, bias)
        }""",
        w1=weight(r, 8, 3, 1, 1), gate=channels(gate(r, 8)), offset=channels(vector(r, 8)), w2=weight(r, 4, 8, 1, 1),
    )  # fmt: skip


@case(equality="constants would be folded into a bias that is an input of the model")
def grouped_conv_of_constants_whose_bias_is_computed(r):
    return model(
        """(float[N,3,H,W] x, float[4] bias) => (float[N,4,H,W] y) {
            h = Conv(x, w1)
            g = Mul(h, gate)
            o = Add(g, offset)
            y = Conv<group=2>(o, w2, bias)
        }""",
        w1=weight(r, 8, 3, 1, 1), gate=channels(gate(r, 8)), offset=channels(vector(r, 8)), w2=weight(r, 4, 4, 1, 1),
    )  # fmt: skip


@case(
    equality="every tap of the window misses the image, so the maximum is that of nothing",
    constant_output=True,
    no_onnxruntime="lowest",
)
def max_pool_whose_window_has_holes(r):
    return model(
        """(float[N,3,3,3] x) => (float[N,4,1,1] y) {
            h = Conv(x, w1)
            g = Mul(h, gate)
            o = Add(g, offset)
            p = MaxPool<kernel_shape=[2,2], dilations=[4,4], pads=[1,1,1,1]>(o)
            c = Clip(p, low)
            y = Conv(c, w2)
        }""",
        w1=weight(r, 8, 3, 1, 1), gate=channels(gate(r, 8)), offset=channels(vector(r, 8)), w2=weight(r, 4, 8, 1, 1),
        low=-4.0,
    )  # fmt: skip


def masked(r, closed, depth=-np.inf, form="s = Add(h, mask)"):
    """Scores over 8 known places, of which some are masked, weigh the rows of a table."""
    mask = np.zeros(8, np.float32)
    mask[list(closed)] = depth
    return model(
        f"""(float[N,S,6] x) => (float[N,S,3] y) {{
            h = MatMul(x, w1)
            {form}
            p = Softmax<axis=-1>(s)
            y = MatMul(p, table)
        }}""",
        w1=weight(r, 6, 8), mask=mask, table=weight(r, 8, 3), shut=mask != 0, down=np.float32(-np.inf),
    )  # fmt: skip


@case(params=5 * 6 + 5 * 3 + 5)  # the zeros of the mask at what stays
def softmax_behind_a_mask_of_minus_infinity(r):
    return masked(r, (1, 4, 6))


@case(params=5 * 6 + 5 * 3)
def softmax_behind_a_condition_that_writes_minus_infinity(r):
    return masked(r, (1, 4, 6), form="s = Where(shut, down, h)")


@case(equality="far down is not minus infinity: where everything else is as far down, it counts")
def softmax_behind_a_mask_of_large_numbers(r):
    return masked(r, (1, 4, 6), depth=-1e9)


@case(equality="a softmax of nothing but minus infinity is no number", constant_output=True, no_onnxruntime="no number")
def softmax_of_nothing(r):
    return masked(r, range(8))


@case(equality="the place that stays though nobody needs it must not be minus infinity", constant_output=True)
def softmax_behind_a_mask_that_nobody_reads(r):
    mask = np.zeros(8, np.float32)
    mask[[0, 1, 4, 6]] = -np.inf
    return model(
        """(float[N,S,6] x) => (float[N,S,3] y) {
            h = MatMul(x, w1)
            s = Add(h, mask)
            p = Softmax<axis=-1>(s)
            t = MatMul(p, nothing)
            o = Add(t, bias)
            y = MatMul(o, w2)
        }""",
        w1=weight(r, 6, 8), mask=mask, nothing=np.zeros((8, 1), np.float32), bias=vector(r, 1), w2=weight(r, 1, 3),
    )  # fmt: skip


@case(
    params=5 * 6 + 5 + 5 * 7 + 7 + 7 * 3
)  # the constants 1 / 2 of closed units go into a bias in front of the softmax
def softmax_of_sums_over_constants(r):
    return model(
        """(float[N,S,6] x) => (float[N,S,3] y) {
            h = MatMul(x, w1)
            a = Add(h, b1)
            g = Mul(a, gate)
            c = Sigmoid(g)
            s = MatMul(c, w2)
            p = Softmax<axis=-1>(s)
            y = MatMul(p, w3)
        }""",
        w1=weight(r, 6, 8), b1=vector(r, 8), gate=gate(r, 8), w2=weight(r, 8, 7), w3=weight(r, 7, 3),
    )  # fmt: skip
