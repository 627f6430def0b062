"""Quantised graphs: QDQ around plain operators, operators on integers, and scales found at run time.

Scales are powers of two, so that float32 and float64 round alike. Weights of integers are not counted by the table; how
many go is tested in test_quantised.py.
"""

from __future__ import annotations

import numpy as np

from cases.table import case, gate, model, vector, weight

CLOSED = (1, 4, 6)
KEPT = "weights of integers are not counted here"


def integers(a, dtype=np.int8):
    """Numbers in [-2, 2) as integers in steps of 1/64."""
    return np.clip(np.rint(a * 64), -127, 127).astype(dtype)


def filters(r, *shape, closed=CLOSED, zero=0):
    """int8 weights, whose rows in `closed` are exactly the zero point."""
    w = integers(weight(r, *shape))
    w[list(closed)] = zero
    return w


def convolutions(r, *, per_channel=True, zero=5, bias=True, pads=1):
    """x -> QDQ -> Conv -> Relu -> QDQ -> Conv, all weights and biases dequantised from integers."""
    w1, w2 = filters(r, 8, 3, 3, 3, zero=zero), integers(weight(r, 5, 8, 3, 3))
    b1 = np.rint(vector(r, 8) * 1024).astype(np.int32)
    b1[list(CLOSED)] = 0
    if not bias:
        b1[list(CLOSED)] = 700
    scale1 = np.full(8, 1 / 64, np.float32) * np.float32(2.0) ** r.integers(-1, 2, 8).astype(np.float32)
    point1 = np.full(8, zero, np.int8)
    if not per_channel:
        scale1, point1 = np.float32(1 / 64), np.int8(zero)
    axis = "<axis=0>" if per_channel else ""
    return model(
        f"""(float[N,3,H,W] x) => (float[N,5,H2,W2] y) {{
            xq = QuantizeLinear(x, s, z)
            xd = DequantizeLinear(xq, s, z)
            w1d = DequantizeLinear{axis}(w1, s1, z1)
            b1d = DequantizeLinear{axis}(b1, sb, zb)
            h = Conv<pads=[{pads},{pads},{pads},{pads}]>(xd, w1d, b1d)
            a = Relu(h)
            aq = QuantizeLinear(a, sa, za)
            ad = DequantizeLinear(aq, sa, za)
            w2d = DequantizeLinear(w2, s2, z2)
            y = Conv<pads=[1,1,1,1]>(ad, w2d)
        }}""",
        s=np.float32(1 / 16), z=np.uint8(120), w1=w1, s1=scale1, z1=point1, b1=b1,
        sb=scale1 / np.float32(16), zb=np.zeros(8, np.int32) if per_channel else np.int32(0),
        sa=np.float32(1 / 32), za=np.uint8(9), w2=w2, s2=np.float32(1 / 64), z2=np.int8(0),
    )  # fmt: skip


@case(equality=KEPT, no_double="QuantizeLinear takes no float64")
def quantised_convolutions_with_scales_and_zero_points_per_channel(r):
    return convolutions(r)


@case(equality=KEPT, no_double="QuantizeLinear takes no float64")
def quantised_convolutions_with_one_scale(r):
    return convolutions(r, per_channel=False)


@case(equality="a bias behind zero filters is a constant that is not zero", no_double="QuantizeLinear takes no float64")
def quantised_convolutions_whose_closed_filters_have_a_bias(r):
    return convolutions(r, bias=False)


@case(equality=KEPT, no_double="QuantizeLinear takes no float64")
def weights_quantised_on_loading(r):
    """As quantisation-aware training exports it: float weights, quantised and dequantised, then transposed."""
    w1 = weight(r, 8, 6)
    w1[list(CLOSED)] = 0
    return model(
        """(float[N,6] x) => (float[N,3] y) {
            w1q = QuantizeLinear<axis=0>(w1, s1, z1)
            w1d = DequantizeLinear<axis=0>(w1q, s1, z1)
            w1t = Transpose<perm=[1,0]>(w1d)
            h = MatMul(x, w1t)
            a = Relu(h)
            w2d = DequantizeLinear(w2, s2, z2)
            y = MatMul(a, w2d)
        }""",
        w1=w1, s1=np.full(8, 1 / 64, np.float32), z1=np.zeros(8, np.int8), w2=integers(weight(r, 8, 3)),
        s2=np.float32(1 / 64), z2=np.int8(0),
    )  # fmt: skip


@case(equality="a constant would need new weights, which integers cannot hold")
def constants_in_front_of_a_quantised_padded_convolution(r):
    return model(
        """(float[N,3,H,W] x) => (float[N,5,H,W] y) {
            h = Conv<pads=[1,1,1,1]>(x, w1)
            g = Mul(h, gate)
            a = Sigmoid(g)
            w2d = DequantizeLinear(w2, s2, z2)
            y = Conv<pads=[1,1,1,1]>(a, w2d)
        }""",
        w1=weight(r, 8, 3, 3, 3), gate=gate(r, 8).reshape(8, 1, 1), w2=integers(weight(r, 5, 8, 3, 3)),
        s2=np.float32(1 / 64), z2=np.int8(0),
    )  # fmt: skip


@case(equality=KEPT, no_double="QuantizeLinear takes no float64")
def dynamic_quantisation_and_integer_product(r):
    """As dynamic quantisation writes a linear layer: closed features are zero, which every range holds."""
    return model(
        """(float[N,6] x) => (float[N,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            a = Relu(g)
            q, qs, qz = DynamicQuantizeLinear(a)
            p = MatMulInteger(q, w2, qz, z2)
            f = Cast<to=1>(p)
            s = Mul(qs, s2)
            y = Mul(f, s)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=np.ceil(gate(r, 8)), w2=integers(weight(r, 8, 3)), z2=np.int8(2),
        s2=np.float32(1 / 64),
    )  # fmt: skip


@case(equality="features that nobody reads still decide the scale", no_double="QuantizeLinear takes no float64")
def dynamic_quantisation_of_features_that_nobody_reads(r):
    w2 = filters(r, 8, 3, zero=2)
    return model(
        """(float[N,6] x) => (float[N,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            q, qs, qz = DynamicQuantizeLinear(h)
            p = MatMulInteger(q, w2, qz, z2)
            f = Cast<to=1>(p)
            s = Mul(qs, s2)
            y = Mul(f, s)
        }""",
        w1=weight(r, 8, 6) * np.array([1, 9, 1, 1, 5, 1, 7, 1], np.float32)[:, None], b1=vector(r, 8), w2=w2,
        z2=np.int8(2), s2=np.float32(1 / 64),
    )  # fmt: skip


@case(equality=KEPT, no_double="QuantizeLinear takes no float64")
def integer_convolutions(r):
    return model(
        """(float[N,3,H,W] x) => (float[N,5,H,W] y) {
            xq = QuantizeLinear(x, s, z)
            h = ConvInteger<pads=[1,1,1,1]>(xq, w1, z, z1)
            f = Cast<to=1>(h)
            c = Mul(f, s)
            d = Mul(c, s1)
            a = Relu(d)
            aq = QuantizeLinear(a, sa, za)
            p = ConvInteger<pads=[1,1,1,1]>(aq, w2, za, z1)
            g = Cast<to=1>(p)
            e = Mul(g, sa)
            y = Mul(e, s1)
        }""",
        s=np.float32(1 / 16), z=np.uint8(120), w1=filters(r, 8, 3, 3, 3).astype(np.uint8), z1=np.uint8(0),
        s1=np.float32(1 / 64), sa=np.float32(1 / 2), za=np.uint8(3),
        w2=integers(np.abs(weight(r, 5, 8, 3, 3))).astype(np.uint8),
    )  # fmt: skip


def operator_oriented(r, closed_bias=0):
    """QuantizeLinear -> QLinearConv -> QLinearConv -> flatten -> QLinearMatMul -> DequantizeLinear."""
    b1 = np.rint(vector(r, 8) * 200).astype(np.int32)
    b1[list(CLOSED)] = closed_bias
    w1, w2 = filters(r, 8, 3, 3, 3, zero=5), filters(r, 4, 8, 3, 3, closed=() if closed_bias else (2,))
    return model(
        """(float[N,3,6,6] x) => (float[N,3] y) {
            xq = QuantizeLinear(x, s, z)
            h = QLinearConv<pads=[1,1,1,1]>(xq, s, z, w1, s1, z1, sh, zh, b1)
            g = QLinearConv(h, sh, zh, w2, s2, z2, sh, zg)
            f = Flatten<axis=1>(g)
            m = QLinearMatMul(f, sh, zg, w3, s2, z2, so, zo)
            y = DequantizeLinear(m, so, zo)
        }""",
        s=np.float32(1 / 16), z=np.uint8(120), w1=w1, s1=np.full(8, 1 / 128, np.float32),
        z1=np.full(8, 5, np.int8), sh=np.float32(1 / 16), zh=np.uint8(100), b1=b1, w2=w2, s2=np.float32(1 / 64),
        z2=np.int8(0), zg=np.uint8(90), w3=integers(weight(r, 64, 3)), so=np.float32(1 / 16), zo=np.uint8(128),
    )  # fmt: skip


@case(equality=KEPT, no_double="QuantizeLinear takes no float64")
def quantised_operators_with_closed_filters(r):
    return operator_oriented(r)


@case(equality="a bias behind zero filters is a constant that is not zero", no_double="QuantizeLinear takes no float64")
def quantised_operators_whose_closed_filters_have_a_bias(r):
    return operator_oriented(r, 900)
