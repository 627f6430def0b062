"""Norms over gated features: per channel, per layer, per group, fused or spelled out."""

from __future__ import annotations

import numpy as np

from cases.sandwich import DENSE_LIVE, dense, image, image_params
from cases.table import batch_norm, case, channels, gate, model, vector, weight

LAYER_NORM = "n = LayerNormalization<axis=-1, epsilon=0.01>(g, ln_s, ln_b)"
LAYER_NORM_SPELLED = """mean = ReduceMean<keepdims=1>(g, last)
            d = Sub(g, mean)
            d2 = Pow(d, two)
            var = ReduceMean<keepdims=1>(d2, last)
            ve = Add(var, eps)
            sd = Sqrt(ve)
            q = Div(d, sd)
            q2 = Mul(q, ln_s)
            n = Add(q2, ln_b)"""
RMS_NORM_SPELLED = """d2 = Pow(g, two)
            var = ReduceMean<keepdims=1>(d2, last)
            ve = Add(var, eps)
            sd = Sqrt(ve)
            inv = Reciprocal(sd)
            q = Mul(g, inv)
            n = Mul(ln_s, q)"""


def affine(r, n=8):
    return {"ln_s": r.uniform(0.5, 1.5, n).astype(np.float32), "ln_b": vector(r, n)}


def spelled(r, n=8):
    return {**affine(r, n), "two": 2.0, "eps": 0.01, "last": [-1]}


def second_gate(r, closed=(1, 4, 6)):
    return {"gate2": gate(r, 8, closed)}


AGAIN = "\n            m = Mul(n, gate2)"
ITSELF = "\n            m = Identity(n)"


@case(params=DENSE_LIVE + 2 * 5)  # statistics over 8 from 5: rescaled
def layer_norm_between_equal_gates(r):
    return dense(r, LAYER_NORM + AGAIN, **affine(r), **second_gate(r))


@case(params=6 * 6 + 6 + 2 * 6 + 3 * 6 + 3)  # the dead outputs are all (0 - mean) / sd: one representative
def layer_norm_over_zeros_whose_outputs_are_read(r):
    return dense(r, LAYER_NORM + ITSELF, **affine(r))


@case(nothing="the statistics read every feature, and the Gemm's reader axis is the norm's axis")
def layer_norm_whose_outputs_alone_are_gated(r):
    return dense(r, LAYER_NORM + AGAIN, closed=(), **affine(r), **second_gate(r))


@case(params=DENSE_LIVE + 2 * 5)
def layer_norm_spelled_out_between_equal_gates(r):
    return dense(r, LAYER_NORM_SPELLED + AGAIN, **spelled(r), **second_gate(r))


@case(params=6 * 6 + 6 + 2 * 6 + 3 * 6 + 3)
def layer_norm_spelled_out_over_zeros_whose_outputs_are_read(r):
    return dense(r, LAYER_NORM_SPELLED + ITSELF, **spelled(r))


@case(nothing="the statistics read every feature")
def layer_norm_spelled_out_whose_outputs_alone_are_gated(r):
    return dense(r, LAYER_NORM_SPELLED + AGAIN, closed=(), **spelled(r), **second_gate(r))


@case(equality="gates before and after the norm close different features")
def layer_norm_between_different_gates(r):
    return dense(r, LAYER_NORM + AGAIN, **affine(r), **second_gate(r, (1, 2, 4, 7)))


@case(params=DENSE_LIVE + 5)
def layer_norm_without_bias_between_equal_gates(r):
    text = "n = LayerNormalization<axis=1>(g, ln_s)" + AGAIN
    return dense(r, text, ln_s=affine(r)["ln_s"], **second_gate(r))


@case(equality="a constant that is not zero reaches the norm")
def layer_norm_over_constants_that_are_not_zero(r):
    text = "s = Sigmoid(g)\n" + LAYER_NORM.replace("(g,", "(s,") + AGAIN
    return dense(r, text, **affine(r), **second_gate(r))


@case(equality="mean and inverse deviation are outputs too", no_double="they are float32 by definition")
def layer_norm_with_all_its_outputs(r):
    return model(
        """(float[N,6] x) => (float[N,3] y, float[N,1] mean, float[N,1] inv) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            n, mean, inv = LayerNormalization<axis=-1>(g, ln_s, ln_b)
            m = Mul(n, gate2)
            y = Gemm<transB=1>(m, w2, b2)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8), w2=weight(r, 3, 8), b2=vector(r, 3), **affine(r),
        **second_gate(r),
    )  # fmt: skip


@case(equality="the norm runs over channels and pixels at once")
def layer_norm_over_three_axes(r):
    return image(
        r, "m = LayerNormalization<axis=1>(g, ln_s, ln_b)", size="5,6",
        ln_s=r.uniform(0.5, 1.5, (8, 5, 6)).astype(np.float32), ln_b=weight(r, 8, 5, 6),
    )  # fmt: skip


@case(equality="a closed row of the axis that is not normalised becomes the norm's bias")
def layer_norm_over_another_axis_than_the_gate(r):
    return image(
        r, "m = LayerNormalization<axis=-1>(g, ln_s, ln_b)", size="5,6", pad=0,
        ln_s=r.uniform(0.5, 1.5, 6).astype(np.float32), ln_b=vector(r, 6),
    )  # fmt: skip


@case(params=DENSE_LIVE + 5)  # zero stays zero
def rms_norm_over_zeros(r):
    return dense(r, "m = RMSNormalization<axis=-1, epsilon=0.01>(g, ln_s)", opset=23, ln_s=affine(r)["ln_s"])


@case(nothing="the mean square reads every feature")
def rms_norm_whose_outputs_alone_are_gated(r):
    text = "n = RMSNormalization<axis=-1, epsilon=0.01>(g, ln_s)" + AGAIN
    return dense(r, text, closed=(), opset=23, ln_s=affine(r)["ln_s"], **second_gate(r))


@case(params=DENSE_LIVE + 5)
def rms_norm_spelled_out_over_zeros(r):
    return dense(r, RMS_NORM_SPELLED + ITSELF, **{k: v for k, v in spelled(r).items() if k != "ln_b"})


@case(params=DENSE_LIVE + 5)
def rms_norm_spelled_with_a_product_and_a_quotient(r):
    text = RMS_NORM_SPELLED.replace("Pow(g, two)", "Mul(g, g)").replace("q = Mul(g, inv)", "q = Div(g, sd)")
    text = text.replace("            inv = Reciprocal(sd)\n", "")
    weights = {k: v for k, v in spelled(r).items() if k not in ("ln_b", "two")}
    return dense(r, text + ITSELF, **weights)


@case(nothing="the mean square reads every feature")
def rms_norm_spelled_out_whose_outputs_alone_are_gated(r):
    weights = {k: v for k, v in spelled(r).items() if k != "ln_b"}
    return dense(r, RMS_NORM_SPELLED + AGAIN, closed=(), **weights, **second_gate(r))


def group_norm(groups):
    return f"m = GroupNormalization<num_groups={groups}, epsilon=0.01>(g, ln_s, ln_b)"


@case(params=image_params(4, kernel=1) + 2 * 4)  # the closed group comes out as its bias
def group_norm_with_one_whole_group_closed(r):
    return image(r, group_norm(2), kernel=1, pad=0, closed=(0, 1, 2, 3), opset=21, **affine(r))


@case(equality="survivors differ between groups")
def group_norm_with_uneven_survivors(r):
    return image(r, group_norm(2), opset=21, **affine(r))


@case(equality="as many survivors in each group: rescale")
def group_norm_with_even_survivors(r):
    return image(r, group_norm(4) + "\n q = Relu(m)", opset=21, closed=(0, 2, 5, 7), **affine(r))


@case(equality="even survivors, and the dead outputs have no reader")
def group_norm_between_equal_gates(r):
    text = group_norm(4).replace("m =", "n =") + AGAIN
    weights = {"gate2": channels(gate(r, 8, (0, 2, 5, 7))), **affine(r)}
    return image(r, text, opset=21, closed=(0, 2, 5, 7), **weights)


@case(equality="group norm as the exporters spell it: Reshape, InstanceNormalization, Reshape, Mul, Add")
def group_norm_spelled_out(r):
    text = """r1 = Reshape(g, to_groups)
            i = InstanceNormalization<epsilon=0.01>(r1, one, nought)
            r2 = Reshape(i, back)
            q = Mul(r2, ln_s)
            m = Add(q, ln_b)"""
    weights = {k: channels(v) for k, v in affine(r).items()}
    return image(
        r, text, size="5,6", closed=(0, 1, 2, 3, 6), to_groups=[0, 2, -1], back=[0, 8, 5, 6],
        one=np.ones(2, np.float32), nought=np.zeros(2, np.float32), **weights,
    )  # fmt: skip


ONE_GROUP = """r1 = Reshape(g, to_groups)
            i = InstanceNormalization<epsilon=0.01>(r1, one, nought)
            r2 = Reshape(i, back)
            q = Mul(r2, ln_s)
            n = Add(q, ln_b)"""


def one_group(r, one=1.0, nought=0.0, **more):
    weights = {k: channels(v) for k, v in affine(r).items()}
    fixed = {"one": np.array([one], np.float32), "nought": np.array([nought], np.float32), "to_groups": [0, 1, -1]}
    return {**fixed, "back": [0, 8, 5, 6], "gate2": channels(gate(r, 8, (1, 4, 6))), **weights, **more}


@case(params=image_params(5) + 3 * 5 + 2)  # statistics over 8 * 30 from 5 * 30: rescaled
def group_norm_of_one_group_spelled_out_between_equal_gates(r):
    return image(r, ONE_GROUP + AGAIN, size="5,6", **one_group(r))


@case(params=image_params(5) + 3 * 5 + 2)
def group_norm_of_one_group_with_its_own_scale_and_bias(r):
    return image(r, ONE_GROUP + AGAIN, size="5,6", **one_group(r, one=0.7, nought=0.4))


@case(equality="a zero comes out as (0 - mean) / deviation in every channel, with a bias that is not zero")
def group_norm_of_one_group_whose_outputs_are_read(r):
    return image(r, ONE_GROUP + ITSELF, size="5,6", **one_group(r, nought=0.4))


@case(nothing="the statistics read every channel")
def group_norm_of_one_group_whose_outputs_alone_are_gated(r):
    return image(r, ONE_GROUP + AGAIN, size="5,6", closed=(), **one_group(r))


@case(constant_output=True, equality="every channel is zero, so the norm puts out its bias")
def group_norm_of_one_group_of_zeros(r):
    return image(r, ONE_GROUP + AGAIN, size="5,6", closed=range(8), **one_group(r, nought=0.4))


@case(params=image_params(6) + 2 * 6)
def instance_norm_of_zero_channels(r):
    return image(r, "m = InstanceNormalization<epsilon=0.01>(g, ln_s, ln_b)", **affine(r))


@case(params=image_params(5) + 2 * 5)
def instance_norm_of_zero_channels_before_an_unpadded_conv(r):
    return image(r, "m = InstanceNormalization<epsilon=0.01>(g, ln_s, ln_b)", pad=0, **affine(r))


@case(params=image_params(5) + 2 * 5)  # the norm works channel by channel
def instance_norm_whose_outputs_are_gated(r):
    text = "n = InstanceNormalization<epsilon=0.01>(g, ln_s, ln_b)" + AGAIN
    return image(r, text, closed=(), gate2=channels(gate(r, 8)), **affine(r))


@case(params=DENSE_LIVE + 4 * 5)
def batch_norm_over_features(r):
    return dense(r, "m = BatchNormalization(g, bn_s, bn_b, bn_m, bn_v)", **batch_norm(r, 8, "bn"))


@case(params=DENSE_LIVE + 4 * 5)
def batch_norm_with_its_own_epsilon(r):
    text = "m = BatchNormalization<epsilon=0.5, momentum=0.1>(g, bn_s, bn_b, bn_m, bn_v)"
    return dense(r, text, **batch_norm(r, 8, "bn"))


@case(params=DENSE_LIVE)
def l2_normalization_over_gated_features(r):
    return dense(r, "m = LpNormalization<axis=-1, p=2>(g)")


@case(nothing="each channel reads its neighbours")
def local_response_normalization(r):
    text = "n = LRN<size=3, alpha=0.9, bias=1.5>(g)\n m = Mul(n, gate2)"
    return image(r, text, closed=(), gate2=channels(gate(r, 8)))


@case(equality="zeros weigh in the response of their neighbours, but add nothing to it")
def local_response_normalization_of_zero_channels(r):
    return image(r, "m = LRN<size=3, alpha=0.9, bias=1.5>(g)")


@case(equality="statistics per channel over its pixels", no_double="the function's body has float32 constants")
def mean_variance_normalization(r):
    text = "p = Add(g, wave)\n m = MeanVarianceNormalization<axes=[2,3]>(p)"
    return image(r, text, size="5,6", wave=np.linspace(-1, 1, 30, dtype=np.float32).reshape(5, 6))


def variance(at="last", correction="", keepdims=1, of="g"):
    """Text of v, the variance of a value along an axis, as torch.var is exported."""
    return f"""mean = ReduceMean<keepdims=1>({of}, {at})
            d = Sub({of}, mean)
            d2 = Mul(d, d)
            {"var" if correction else "v"} = ReduceMean<keepdims={keepdims}>(d2, {at})
            {correction}"""


UNBIASED = "scaled = Mul(var, n)\n v = Div(scaled, less)"
SIMPLE_NORM = """ve = Add(v, eps)
            sd = Sqrt(ve)
            inv = Reciprocal(sd)
            q = Mul(g, inv)
            n1 = Mul(q, ln_s)"""


@case(params=DENSE_LIVE + 5)  # x / sqrt(variance): zeros stay zeros
def division_by_the_deviation_alone(r):
    return dense(r, f"{variance()}\n{SIMPLE_NORM}\n m = Identity(n1)", **spelled(r))


@case(params=DENSE_LIVE + 5)
def division_by_the_unbiased_deviation_without_kept_dimension(r):
    text = variance(correction=UNBIASED.replace("v =", "v1 =") + "\n v = Unsqueeze(v1, last)", keepdims=0)
    return dense(r, f"{text}\n{SIMPLE_NORM}\n m = Identity(n1)", n=8.0, less=7.0, **spelled(r))


@case(params=DENSE_LIVE + 5)
def division_by_the_deviation_with_axes_as_attributes(r):
    text = variance().replace("<keepdims=1>", "<axes=[-1]>").replace(", last)", ")")
    weights = {key: value for key, value in spelled(r).items() if key != "last"}
    return dense(r, f"{text}\n{SIMPLE_NORM}\n m = Identity(n1)", opset=13, **weights)


@case(nothing="the variance reads every feature")
def division_by_a_deviation_whose_outputs_alone_are_gated(r):
    return dense(r, f"{variance()}\n{SIMPLE_NORM}\n m = Mul(n1, gate2)", closed=(), **spelled(r), **second_gate(r))


@case(params=DENSE_LIVE + 5)
def division_by_the_deviation_of_constants(r):
    # constants that are not zero enter the mean, the variance and the features that stay
    text = f"s = Cos(g)\n {variance(of='s')}\n{SIMPLE_NORM}\n m = Mul(n1, gate2)"
    return dense(r, text, **spelled(r), **second_gate(r))


@case(params=6 * 6 + 6 + 3 * 6 + 3 + 2 * 6)  # (c - mean) / sd of the dead ones, with c = 0: one stands for all
def unbiased_layer_norm_spelled_out_whose_outputs_are_read(r):
    text = f"""{variance(correction=UNBIASED)}
            ve = Add(v, eps)
            sd = Sqrt(ve)
            q = Div(d, sd)
            q2 = Mul(q, ln_s)
            m = Add(q2, ln_b)"""
    return dense(r, text, n=8.0, less=7.0, **spelled(r))


@case(params=image_params(6, kernel=1) + 2 * 6)
def layer_norm_over_channels_spelled_out_whose_outputs_are_read(r):
    text = f"""{variance("first")}
            ve = Add(v, eps)
            sd = Sqrt(ve)
            q = Div(d, sd)
            q2 = Mul(q, s4)
            m = Add(q2, b4)"""
    return image(r, text, kernel=1, pad=0, first=[1], **spelled_over_channels(r))


def spelled_over_channels(r):
    return {"s4": channels(affine(r)["ln_s"]), "b4": channels(affine(r)["ln_b"]), "eps": 0.01}


GLOBAL_RESPONSE = """a = Tanh(g1)
            norm = ReduceL2<keepdims=1>(a, space)
            mean = ReduceMean<keepdims=1>(norm, last)
            me = Add(mean, eps)
            ratio = Div(norm, me)
            p = Mul(a, ratio)
            q = Mul(p, s4)
            q2 = Add(q, b4)
            m = Add(q2, a)"""


def global_response(r, size):
    """g -> + shift -> an activation -> a global response norm over channels -> a 1x1 Conv."""
    return image(
        r, "g1 = Add(g, shift)\n" + GLOBAL_RESPONSE, kernel=1, pad=0, size=size, space=[2, 3], last=[1],
        shift=channels(vector(r, 8)), **spelled_over_channels(r),
    )  # fmt: skip


@case(params=image_params(6, kernel=1) + 3 * 6)  # a closed channel is c * (1 + s * norm / mean) + b: one stands for all
def global_response_norm_of_constants_over_static_pixels(r):
    return global_response(r, "5,6")


@case(equality="the norm of a constant grows with the number of pixels")
def global_response_norm_of_constants_over_dynamic_pixels(r):
    return global_response(r, "H,W")


@case(params=image_params(5, kernel=1) + 2 * 5)
def global_response_norm_of_zeros_over_dynamic_pixels(r):
    text = GLOBAL_RESPONSE.replace("Tanh(g1)", "Tanh(g)").replace("q2 = Add(q, b4)", "q2 = Mul(q, b4)")
    return image(r, text, kernel=1, pad=0, space=[2, 3], last=[1], **spelled_over_channels(r))
