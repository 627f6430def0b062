"""Pooling and reductions: over space a dead channel stays dead, over channels the count of zeros may matter."""

from __future__ import annotations

import numpy as np

from cases.sandwich import DENSE_LIVE, dense, image, image_params
from cases.table import add, batch_norm, case, channels, gate, model, vector, weight

NORM = "n = BatchNormalization(g, bn_s, bn_b, bn_m, bn_v)\n "

# Zero channels through a pool; the reader is a padded Conv, so only an exact zero may vanish.
POOLS = {
    "max_pool": "m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(g)",
    "padded_max_pool": "m = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(g)",
    "max_pool_with_ceil_mode": "m = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(g)",
    "dilated_max_pool": "m = MaxPool<kernel_shape=[2,2], dilations=[2,2]>(g)",
    "average_pool": "m = AveragePool<kernel_shape=[2,2], strides=[2,2]>(g)",
    "padded_average_pool": "m = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(g)",
    "average_pool_that_counts_padding": "m = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(g)",
    "average_pool_with_ceil_mode": "m = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(g)",
    "average_pool_with_auto_pad": 'm = AveragePool<kernel_shape=[3,3], auto_pad="SAME_UPPER">(g)',
    "lp_pool": "m = LpPool<kernel_shape=[2,2], p=2>(g)",
}
for _name, _text in POOLS.items():
    add(f"{_name}_of_zero_channels", __name__, lambda r, t=_text: image(r, t), params=image_params(5))

# Constants that are not zero through a pool, before an unpadded reader: does the pool keep them constant?
KEEPS_CONSTANTS = {
    "max_pool", "padded_max_pool", "max_pool_with_ceil_mode", "dilated_max_pool", "average_pool", "padded_average_pool",
    "average_pool_with_ceil_mode",
}  # fmt: skip
for _name, _text in POOLS.items():
    _options = (
        {"params": image_params(5, kernel=1) + 4 * 5}
        if _name in KEEPS_CONSTANTS
        else {"equality": "the border may differ from the inside, or the value is not worth a rule"}
    )

    def _build(r, t=_text):
        constants = {1: 0.7, 4: -1.3, 6: 0.4}
        return image(r, NORM + t.replace("(g)", "(n)"), kernel=1, pad=0, **batch_norm(r, 8, "bn", constants))

    add(f"{_name}_of_constants", __name__, _build, **_options)


def head(r, reduce, opset=20, axes=None, size="H,W", **weights):
    """conv, gate, norm, relu, a reduction to [N, 8], Gemm."""
    return model(
        f"""(float[N,3,{size}] x) => (float[N,3] y) {{
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            g = Mul(h, gate)
            n = BatchNormalization(g, bn_s, bn_b, bn_m, bn_v)
            a = Sigmoid(n)
            {reduce}
            y = Gemm<transB=1>(p, w2, b2)
        }}""",
        opset=opset, w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=channels(gate(r, 8)), w2=weight(r, 3, 8),
        b2=vector(r, 3), **batch_norm(r, 8, "bn"), **({} if axes is None else {"axes": axes}), **weights,
    )  # fmt: skip


HEAD_PARAMS = 5 * 28 + 4 * 5 + 3 * 5 + 3
HEADS = {
    "global_average_pool_and_flatten": ("q = GlobalAveragePool(a)\n p = Flatten(q)", 20, None),
    "global_max_pool_and_squeeze": ("q = GlobalMaxPool(a)\n p = Squeeze(q, axes)", 20, [2, 3]),
    "mean_over_pixels_by_input": ("p = ReduceMean<keepdims=0>(a, axes)", 18, [2, 3]),
    "mean_over_pixels_by_negative_axes": ("p = ReduceMean<keepdims=0>(a, axes)", 20, [-1, -2]),
    "mean_over_pixels_by_attribute": ("p = ReduceMean<keepdims=0, axes=[2,3]>(a)", 13, None),
    "max_over_pixels": ("p = ReduceMax<keepdims=0>(a, axes)", 18, [2, 3]),
    "min_over_pixels": ("p = ReduceMin<keepdims=0>(a, axes)", 18, [2, 3]),
    "mean_one_axis_at_a_time": (
        "q = ReduceMean<keepdims=1>(a, axes)\n s = ReduceMax<keepdims=1>(q, other)\n p = Flatten(s)", 18, [3]
    ),
}  # fmt: skip
for _name, (_text, _opset, _axes) in HEADS.items():
    _more = {"other": [2]} if "other" in _text else {}
    add(
        f"head_by_{_name}", __name__,
        lambda r, t=_text, o=_opset, a=_axes, m=_more: head(r, t, o, a, **m), params=HEAD_PARAMS,
    )  # fmt: skip


@case(params=HEAD_PARAMS)  # 30 pixels of a known constant
def head_by_sum_over_static_pixels(r):
    return head(r, "p = ReduceSum<keepdims=0>(a, axes)", axes=[2, 3], size="5,6")


@case(equality="the sum of a constant grows with the number of pixels, which is not known")
def head_by_sum_over_dynamic_pixels(r):
    return head(r, "p = ReduceSum<keepdims=0>(a, axes)", axes=[2, 3])


@case(equality="the root of a sum of squares grows with the number of pixels")
def head_by_l2_norm_over_dynamic_pixels(r):
    return head(r, "p = ReduceL2<keepdims=0>(a, axes)", axes=[2, 3])


@case(equality="the logarithm of a sum grows with the number of pixels")
def head_by_log_sum_exp_over_dynamic_pixels(r):
    return head(r, "p = ReduceLogSumExp<keepdims=0>(a, axes)", axes=[2, 3])


@case(params=HEAD_PARAMS)
def head_that_flattens_after_a_pool_to_one_pixel(r):
    return head(r, "q = AveragePool<kernel_shape=[5,6]>(a)\n p = Flatten(q)", size="5,6")


def reduced(r, text, opset=20, closed=(1, 4, 6), **weights):
    """x [N, 6] -> Gemm -> gate -> TEXT, which writes y [N, 1]."""
    return model(
        f"""(float[N,6] x) => (float[N,1] y) {{
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            {text}
        }}""",
        opset=opset, w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8, closed), **weights,
    )  # fmt: skip


REDUCED = 5 * 6 + 5
ADD = "each constant adds to the result"
CHANNEL_REDUCTIONS = {
    "log_sum": ("s = Exp(g)\n y = ReduceLogSum<keepdims=1>(s, axes)", {"equality": ADD}),
    "product_of_exponentials": ("s = Exp(g)\n y = ReduceProd<keepdims=1>(s, axes)", {"equality": ADD}),
    "sum": ("y = ReduceSum<keepdims=1>(g, axes)", {"params": REDUCED}),
    "mean": ("y = ReduceMean<keepdims=1>(g, axes)", {"params": REDUCED}),
    "sum_of_squares": ("y = ReduceSumSquare<keepdims=1>(g, axes)", {"params": REDUCED}),
    "l1_norm": ("y = ReduceL1<keepdims=1>(g, axes)", {"params": REDUCED}),
    "l2_norm": ("y = ReduceL2<keepdims=1>(g, axes)", {"params": REDUCED}),
    # the zeros are the maximum, and the minimum: the result is compared with them
    "maximum": (
        "a = Abs(g)\n s = Neg(a)\n m = ReduceMax(s, axes)\n t = ReduceSum(g, axes)\n y = Add(m, t)", {"params": REDUCED}
    ),
    "minimum": ("a = Abs(g)\n m = ReduceMin(a, axes)\n t = ReduceSum(g, axes)\n y = Add(m, t)", {"params": REDUCED}),
    "log_sum_exp": ("y = ReduceLogSumExp<keepdims=1>(g, axes)", {"equality": "each zero adds exp(0)"}),
    "mean_of_constants": ("s = Sigmoid(g)\n y = ReduceMean<keepdims=1>(s, axes)", {"params": REDUCED}),
    "sum_of_constants": ("s = Sigmoid(g)\n y = ReduceSum<keepdims=1>(s, axes)", {"params": REDUCED}),
    "sum_of_exponentials": ("s = Exp(g)\n y = ReduceSum<keepdims=1>(s, axes)", {"params": REDUCED}),
    "sum_of_squares_of_constants": ("s = Cos(g)\n y = ReduceSumSquare<keepdims=1>(s, axes)", {"params": REDUCED}),
    "l1_norm_of_constants": ("s = Sub(g, two)\n y = ReduceL1<keepdims=1>(s, axes)", {"params": REDUCED}),
    "l2_norm_of_constants": ("s = Sigmoid(g)\n y = ReduceL2<keepdims=1>(s, axes)", {"equality": "a root"}),
    "maximum_of_constants": ("s = Sub(g, two)\n y = ReduceMax<keepdims=1>(s, axes)", {"params": REDUCED}),
    "minimum_of_constants": ("s = Cos(g)\n y = ReduceMin<keepdims=1>(s, axes)", {"params": REDUCED}),
}  # fmt: skip
for _name, (_text, _options) in CHANNEL_REDUCTIONS.items():
    _more = {"two": 2.0} if "two" in _text else {}
    add(
        f"{_name}_over_gated_features", __name__, lambda r, t=_text, m=_more: reduced(r, t, axes=[1], **m), **_options
    )  # fmt: skip


def reduced_over_two_axes(r, text):
    """Rows 1, 4, 6 and columns 0, 3 hold 0.5 each."""
    return model(
        f"""(float[N,6,4] x) => (float[N,1,1] y) {{
            h = MatMul(w1, x)
            t = MatMul(h, w2)
            g = Mul(t, rows)
            u = Mul(g, columns)
            s = Sigmoid(u)
            {text}
        }}""",
        w1=weight(r, 8, 6), w2=weight(r, 4, 7), rows=gate(r, 8).reshape(8, 1), columns=gate(r, 7, (0, 3)), axes=[1, 2],
    )  # fmt: skip


for _kind in ("Mean", "Sum", "SumSquare", "Min"):
    add(
        f"reduce_{_kind.lower()}_of_constants_along_two_axes", __name__,
        lambda r, k=_kind: reduced_over_two_axes(r, f"y = Reduce{k}<keepdims=1>(s, axes)"),
        params=5 * 6 + 4 * 5 + 5 + 5,
    )  # fmt: skip


def over_channels_and_dynamic_pixels(r, operator):
    return model(
        f"""(float[N,3,H,W] x) => (float[N,1,1,1] y) {{
            h = Conv(x, w1, b1)
            g = Mul(h, gate)
            s = Sigmoid(g)
            y = {operator}<keepdims=1>(s, axes)
        }}""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=channels(gate(r, 8)), axes=[1, 2, 3],
    )  # fmt: skip


@case(equality="how often a constant is added grows with the number of pixels, which is not known")
def sum_over_channels_and_dynamic_pixels(r):
    return over_channels_and_dynamic_pixels(r, "ReduceSum")


@case(params=5 * 28)  # each constant fills its share, however many pixels there are
def mean_over_channels_and_dynamic_pixels(r):
    return over_channels_and_dynamic_pixels(r, "ReduceMean")


@case(params=HEAD_PARAMS)
def head_by_l2_norm_over_static_pixels(r):
    return head(r, "p = ReduceL2<keepdims=0>(a, axes)", axes=[2, 3], size="5,6")


@case(params=REDUCED)
def mean_over_gated_features_by_attribute(r):
    return reduced(r, "y = ReduceMean<keepdims=1, axes=[-1]>(g)", opset=13)


@case(params=REDUCED)
def mean_over_all_axes_at_once(r):
    return model(
        """(float[N,6] x) => (float y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            y = ReduceMean<keepdims=0>(g)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8),
    )  # fmt: skip


@case(equality="the product is zero once one factor is")
def product_over_gated_features(r):
    return model(
        """(float[N,6] x) => (float[N,1] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            p = ReduceProd<keepdims=1>(g, axes)
            s = ReduceSum<keepdims=1>(h, axes)
            y = Add(p, s)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8), axes=[1],
    )  # fmt: skip


@case(params=HEAD_PARAMS)  # the p-norm of a constant over an unknown number of pixels is not known, that of zero is
def head_by_global_lp_pool_of_zero_channels(r):
    return head(r, "b = Mul(a, gate)\n q = GlobalLpPool<p=2>(b)\n p = Flatten(q)")


@case(equality="a zero can win, and its index is the answer")
def index_of_the_smallest_gated_feature(r):
    return model(
        """(float[N,6] x) => (int64[N,1] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            y = ArgMin<axis=1, keepdims=1>(g)
        }""",
        w1=weight(r, 8, 6) * 9, b1=vector(r, 8), gate=gate(r, 8),
    )  # fmt: skip


@case(equality="a zero can win, and its index is the answer")
def index_of_the_largest_gated_feature(r):
    return model(
        """(float[N,6] x) => (int64[N,1] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            y = ArgMax<axis=1, keepdims=1>(g)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8),
    )  # fmt: skip


@case(equality="a zero can be among the largest")
def largest_three_of_gated_features(r):
    return dense(r, "m, i = TopK<axis=1>(g, three)", width=3, three=[3])


@case(equality="a running sum carries the live ones into the closed places")
def running_sum_over_gated_features(r):
    return dense(r, "m = CumSum(g, axis)", axis=np.int64(1))


@case(params=DENSE_LIVE)
def running_sum_over_the_sequence(r):
    return model(
        """(float[N,S,6] x) => (float[N,S,3] y) {
            h0 = MatMul(x, w1)
            h = Add(h0, b1)
            g = Mul(h, gate)
            c = CumSum(g, axis)
            y0 = MatMul(c, w2)
            y = Add(y0, b2)
        }""",
        w1=weight(r, 6, 8), b1=vector(r, 8), gate=gate(r, 8), axis=np.int64(1), w2=weight(r, 8, 3), b2=vector(r, 3),
    )  # fmt: skip


def average_of_constants(r, attributes: str, size: str = "12,12", out: str = "12,12"):
    """Eight of 16 channels are constants; their padded averages are not, and a 1x1 Conv reads all."""
    dead = {k: float(r.uniform(0.5, 1.5)) for k in (0, 2, 3, 7, 8, 11, 13, 14)}
    return model(
        f"""(float[N,3,{size}] x) => (float[N,4,{out}] y) {{
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            g = Mul(h, gate)
            n = BatchNormalization(g, bn_s, bn_b, bn_m, bn_v)
            a = AveragePool<kernel_shape=[3,3], {attributes}>(n)
            m = Sigmoid(a)
            y = Conv(m, w2, b2)
        }}""",
        w1=weight(r, 16, 3, 3, 3), b1=vector(r, 16), gate=channels(gate(r, 16, tuple(dead))),
        **batch_norm(r, 16, "bn", dead), w2=weight(r, 4, 16, 1, 1), b2=vector(r, 4),
    )  # fmt: skip


@case(params=8 * 28 + 4 * 8 + 4 + 4 * 3 * 3)  # a map of border, inside, border
def average_pool_that_counts_the_padding_of_constants(r):
    return average_of_constants(r, "pads=[1,1,1,1], count_include_pad=1")


@case(params=8 * 28 + 4 * 8 + 4)
def average_pool_that_leaves_the_padding_of_constants_out(r):
    return average_of_constants(r, "pads=[1,1,1,1]")


@case(equality="a window that hangs over the end is no convolution")
def average_pool_of_constants_with_hanging_windows(r):
    return average_of_constants(r, "pads=[1,1,1,1], strides=[2,2], ceil_mode=1, count_include_pad=1", "9,12", "5,7")


@case(params=8 * 28 + 8 * 9 + 4 * 8 + 4 + 4 * 36)  # 6 x 6 places, all stored: each second row meets another border
def average_pool_of_a_map_that_leaves_the_padding_out(r):
    """A depthwise Conv makes maps of constants, and the pool averages those."""
    dead = {k: float(r.uniform(0.5, 1.5)) for k in (0, 2, 3, 7, 8, 11, 13, 14)}
    return model(
        """(float[N,3,12,12] x) => (float[N,4,6,6] y) {
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            g = Mul(h, gate)
            n = BatchNormalization(g, bn_s, bn_b, bn_m, bn_v)
            d = Conv<pads=[1,1,1,1], group=16>(n, w3)
            a = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(d)
            y = Conv(a, w2, b2)
        }""",
        w1=weight(r, 16, 3, 3, 3), b1=vector(r, 16), gate=channels(gate(r, 16, tuple(dead))),
        **batch_norm(r, 16, "bn", dead), w3=weight(r, 16, 1, 3, 3), w2=weight(r, 4, 16, 1, 1), b2=vector(r, 4),
    )  # fmt: skip
