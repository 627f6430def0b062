"""How do other exporters spell it? TorchScript, tf2onnx and Paddle: old opsets, run-time shapes, Constant nodes."""

from __future__ import annotations

import numpy as np

from cases.sandwich import image_params
from cases.table import batch_norm, case, channels, gate, model, vector, weight

INTERPOLATE = """
    shape = Shape(g)
    two = Constant<value_ints=[2]>()
    nought = Constant<value_ints=[0]>()
    four = Constant<value_ints=[4]>()
    nc = Slice(shape, nought, two, nought)
"""


def interpolated(r, sizes, opset=13, **weights):
    return model(
        f"""(float[N,3,H,W] x) => (float[N,4,HO,WO] y) {{
            h = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1, b1)
            g = Mul(h, gate)
            {INTERPOLATE}
            {sizes}
            size = Concat<axis=0>(nc, hw)
            u = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(g, roi, noscale, size)
            y = Conv<pads=[1,1,1,1]>(u, w2, b2)
        }}""",
        opset=opset, ir=7, w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=channels(gate(r, 8)),
        w2=weight(r, 4, 8, 3, 3),
        b2=vector(r, 4), roi=np.zeros(0, np.float32), noscale=np.zeros(0, np.float32), **weights,
    )  # fmt: skip


@case(params=image_params(5))
def torchscript_interpolation_by_a_factor(r):
    text = """wh = Slice(shape, two, four, nought)
            f = Cast<to=1>(wh)
            scaled = Mul(f, factor)
            floored = Floor(scaled)
            hw = Cast<to=7>(floored)"""
    return interpolated(r, text, factor=np.float32(1.6))


@case(params=image_params(5))
def torchscript_interpolation_to_the_size_of_another_value(r):
    return interpolated(r, "sx = Shape(x)\n hw = Slice(sx, two, four, nought)")


@case(params=6 * 28 + 8 * 28 + 4 * (6 + 8) * 9 + 4)
def torchscript_interpolation_to_the_size_of_a_skip_connection(r):
    """The skip itself is gated: only its height and width may be read."""
    return model(
        f"""(float[N,3,H,W] x) => (float[N,4,HO,WO] y) {{
            s0 = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1, b1)
            s = Mul(s0, gate1)
            h = Conv<pads=[1,1,1,1], strides=[4,4]>(x, w2, b2)
            g = Mul(h, gate2)
            {INTERPOLATE}
            other = Shape(s)
            hw = Slice(other, two, four, nought)
            size = Concat<axis=0>(nc, hw)
            u = Resize<mode="nearest">(g, roi, noscale, size)
            c = Concat<axis=1>(s, u)
            y = Conv<pads=[1,1,1,1]>(c, w3, b3)
        }}""",
        opset=13, ir=7, w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate1=channels(gate(r, 8, (0, 5))),
        w2=weight(r, 10, 3, 3, 3), b2=vector(r, 10), gate2=channels(gate(r, 10, (3, 9))), w3=weight(r, 4, 18, 3, 3),
        b3=vector(r, 4), roi=np.zeros(0, np.float32), noscale=np.zeros(0, np.float32),
    )  # fmt: skip


@case(equality="the output is a constant whose size is the input's", constant_output=True)
def constant_output_before_shapes_had_a_range(r):
    return model(
        """(float[N,S,6] x) => (float[N,S,3] y) {
            h = MatMul(x, w)
            y = Add(h, b)
        }""",
        opset=13, ir=7, w=np.zeros((6, 3), np.float32), b=vector(r, 3),
    )  # fmt: skip


@case(params=5 * 28 + 4 * 5 * 9 + 4 + 3 * 4 + 3)
def tf2onnx_layers_in_channels_last(r):
    """Transposes around every convolution, biases along the last axis, a mean over height and width, a flat reshape."""
    return model(
        """(float[N,H,W,3] x) => (float[N,3] y) {
            t0 = Transpose<perm=[0,3,1,2]>(x)
            c1 = Conv<pads=[0,0,1,1], strides=[2,2], kernel_shape=[3,3]>(t0, w1)
            l1 = Transpose<perm=[0,2,3,1]>(c1)
            a1 = Add(l1, b1)
            g1 = Mul(a1, gate)
            r1 = Relu(g1)
            t1 = Transpose<perm=[0,3,1,2]>(r1)
            c2 = Conv<pads=[1,1,1,1], kernel_shape=[3,3]>(t1, w2)
            l2 = Transpose<perm=[0,2,3,1]>(c2)
            a2 = Add(l2, b2)
            r2 = Max(a2, zero)
            m = ReduceMean<axes=[1,2], keepdims=1>(r2)
            q = Squeeze(m, axes)
            f = Reshape(q, shape)
            d = MatMul(f, w3)
            y = Add(d, b3)
        }""",
        opset=13, ir=7, w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=gate(r, 8), w2=weight(r, 4, 8, 3, 3),
        b2=vector(r, 4), zero=np.float32(0), axes=[1, 2], shape=[-1, 4], w3=weight(r, 4, 3), b3=vector(r, 3),
    )  # fmt: skip


@case(params=5 * 28 + 4 * 5 * 9 + 4 * 2 + 3 * 4 + 3)  # the second convolution has a bias of its own
def tf2onnx_batch_norm_in_channels_last(r):
    """A BatchNormalization that was folded to Mul and Add along the last axis, behind a gate that is part of it."""
    return model(
        """(float[N,H,W,3] x) => (float[N,3] y) {
            t0 = Transpose<perm=[0,3,1,2]>(x)
            c1 = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(t0, w1)
            l1 = Transpose<perm=[0,2,3,1]>(c1)
            s1 = Mul(l1, gamma)
            a1 = Add(s1, beta)
            r1 = Clip(a1, nought, six)
            t1 = Transpose<perm=[0,3,1,2]>(r1)
            c2 = Conv<auto_pad="SAME_UPPER">(t1, w2, b2)
            p = GlobalAveragePool(c2)
            q = Squeeze(p, axes)
            d = Gemm(q, w3, b3)
            y = Sigmoid(d)
        }""",
        opset=13, ir=7, w1=weight(r, 8, 3, 3, 3), gamma=gate(r, 8), beta=np.where(gate(r, 8) == 0, -0.5, vector(r, 8)),
        nought=np.float32(0), six=np.float32(6), w2=weight(r, 4, 8, 3, 3), b2=vector(r, 4), axes=[2, 3],
        w3=weight(r, 4, 3), b3=vector(r, 3),
    )  # fmt: skip


@case(params=5 * 6 + 5 + 3 * 5 + 3)
def paddle_layers_with_constant_nodes_and_small_shapes(r):
    """Shapes pass through int32, constants are nodes, and scale is an operator of its own."""
    return model(
        """(float[N,S,6] x) => (float[M,3] y) {
            h0 = MatMul(x, w1)
            h1 = Add(h0, b1)
            k = Constant<value_float=1.0>()
            h2 = Mul(h1, k)
            g = Mul(h2, gate)
            a = Relu(g)
            sh = Shape(a)
            sh32 = Cast<to=6>(sh)
            zero = Constant<value_ints=[0]>()
            two = Constant<value_ints=[2]>()
            three = Constant<value_ints=[3]>()
            ns = Slice(sh32, zero, two, zero)
            last = Slice(sh32, two, three, zero)
            rows = ReduceProd<keepdims=1>(ns)
            flat32 = Concat<axis=0>(rows, last)
            flat = Cast<to=7>(flat32)
            f = Reshape(a, flat)
            d = MatMul(f, w2)
            y = Add(d, b2)
        }""",
        opset=13, ir=7, w1=weight(r, 6, 8), b1=vector(r, 8), gate=gate(r, 8), w2=weight(r, 8, 3), b2=vector(r, 3),
    )  # fmt: skip


@case(params=5 * 28 + 4 * 5 * 9 + 4 * 2)
def paddle_batch_norm_behind_a_gate(r):
    return model(
        """(float[N,3,H,W] x) => (float[N,4,HO,WO] y) {
            c = Conv<dilations=[1,1], group=1, kernel_shape=[3,3], pads=[1,1,1,1], strides=[1,1]>(x, w1)
            z = Mul(c, gate)
            n = BatchNormalization<epsilon=1e-5, momentum=0.9>(z, n_s, n_b, n_m, n_v)
            a = Relu(n)
            p = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(a)
            y = Conv<pads=[1,1,1,1]>(p, w2, b2)
        }""",
        opset=14, ir=7, w1=weight(r, 8, 3, 3, 3), gate=channels(gate(r, 8)), w2=weight(r, 4, 8, 3, 3), b2=vector(r, 4),
        **batch_norm(r, 8, "n", {1: -0.5, 4: -0.1, 6: -1.0}),
    )  # fmt: skip
