"""Convolutions of every kind, padded or not: what becomes of a dead channel that is a constant?"""

from __future__ import annotations

from cases.sandwich import image, image_params
from cases.table import add, batch_norm, case, channels, gate, model, vector, weight

NORM_RELU = """n = BatchNormalization(g, bn_s, bn_b, bn_m, bn_v)
            m = Relu(n)"""
# Behind BatchNorm and ReLU, channel 1 is 0.7, channel 4 is 1.3, channel 6 is 0 (its constant -0.9 is cut off).
DEAD = {1: 0.7, 4: 1.3, 6: -0.9}


@case(params=image_params(5))
def conv_gate_padded_conv(r):
    return image(r, "m = Identity(g)")


@case(params=image_params(5))
def conv_gate_after_relu(r):
    return image(r, "m = Relu(g)")


@case(params=image_params(6) + 4 * 6)  # 5 live and one representative, BatchNorm kept
def conv_gate_norm_relu_padded_conv(r):
    return image(r, NORM_RELU, **batch_norm(r, 8, "bn", DEAD))


@case(params=image_params(6) + 4 * 6)
def conv_gate_norm_relu_padded_conv_of_static_size(r):
    return image(r, NORM_RELU, size="6,6", **batch_norm(r, 8, "bn", DEAD))


@case(params=image_params(5) + 4 * 5)
def conv_gate_norm_relu_unpadded_conv(r):
    return image(r, NORM_RELU, pad=0, **batch_norm(r, 8, "bn", DEAD))


@case(params=image_params(5, kernel=1) + 4 * 5)
def conv_gate_norm_relu_pointwise_conv(r):
    return image(r, NORM_RELU, kernel=1, pad=0, **batch_norm(r, 8, "bn", DEAD))


@case(params=image_params(5) + 4 * 5)  # the bias that receives the constants has to be made
def conv_gate_norm_relu_unpadded_conv_without_bias(r):
    return image(r, NORM_RELU, pad=0, bias=False, **batch_norm(r, 8, "bn", DEAD))


@case(params=image_params(5) + 4 * 5)
def conv_gate_norm_whose_dead_channels_all_end_in_relu(r):
    return image(r, NORM_RELU, **batch_norm(r, 8, "bn", {1: -0.7, 4: -1.3, 6: -0.9}))


@case(params=image_params(6) + 4 * 6)  # constants of both signs into one representative
def conv_gate_norm_without_relu(r):
    text = "m = BatchNormalization(g, bn_s, bn_b, bn_m, bn_v)"
    return image(r, text, **batch_norm(r, 8, "bn", {1: 2.0, 4: -1.3, 6: 0.4}))


@case(params=image_params(6) + 4 * 6)
def conv_gate_norm_relu_strided_dilated_conv(r):
    attributes = "strides=[2,2], dilations=[2,2]"
    return image(r, NORM_RELU, attributes=attributes, **batch_norm(r, 8, "bn", DEAD))


@case(params=image_params(6) + 4 * 6)
def conv_gate_norm_relu_conv_with_auto_pad(r):
    return model(
        """(float[N,3,H,W] x) => (float[N,4,HO,WO] y) {
            h = Conv<auto_pad="SAME_UPPER">(x, w1, b1)
            g = Mul(h, gate)
            n = BatchNormalization(g, bn_s, bn_b, bn_m, bn_v)
            m = Relu(n)
            y = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(m, w2, b2)
        }""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=channels(gate(r, 8)), w2=weight(r, 4, 8, 3, 3),
        b2=vector(r, 4), **batch_norm(r, 8, "bn", DEAD),
    )  # fmt: skip


@case(params=image_params(5) + 4 * 5)
def conv_gate_norm_relu_conv_with_auto_pad_valid(r):
    return model(
        """(float[N,3,H,W] x) => (float[N,4,HO,WO] y) {
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            g = Mul(h, gate)
            n = BatchNormalization(g, bn_s, bn_b, bn_m, bn_v)
            m = Relu(n)
            y = Conv<auto_pad="VALID", kernel_shape=[3,3]>(m, w2, b2)
        }""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=channels(gate(r, 8)), w2=weight(r, 4, 8, 3, 3),
        b2=vector(r, 4), **batch_norm(r, 8, "bn", DEAD),
    )  # fmt: skip


@case(params=image_params(6) + 4 * 6)
def conv_gate_norm_relu_conv_padded_on_two_sides_only(r):
    return model(
        """(float[N,3,H,W] x) => (float[N,4,HO,WO] y) {
            h = Conv(x, w1, b1)
            g = Mul(h, gate)
            n = BatchNormalization(g, bn_s, bn_b, bn_m, bn_v)
            m = Relu(n)
            y = Conv<pads=[0,2,1,0]>(m, w2, b2)
        }""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=channels(gate(r, 8)), w2=weight(r, 4, 8, 3, 3),
        b2=vector(r, 4), **batch_norm(r, 8, "bn", DEAD),
    )  # fmt: skip


@case(params=5 * 27 + 4 * 5 + 4 * 5 * 9 + 4)  # position C: gate after norm and activation
def conv_norm_relu_gate_conv(r):
    return model(
        """(float[N,3,H,W] x) => (float[N,4,H,W] y) {
            c = Conv<pads=[1,1,1,1]>(x, w1)
            n = BatchNormalization(c, bn_s, bn_b, bn_m, bn_v)
            a = Sigmoid(n)
            m = Mul(a, gate)
            y = Conv<pads=[1,1,1,1]>(m, w2, b2)
        }""",
        w1=weight(r, 8, 3, 3, 3), gate=channels(gate(r, 8)), w2=weight(r, 4, 8, 3, 3), b2=vector(r, 4),
        **batch_norm(r, 8, "bn"),
    )  # fmt: skip


def zeroed(r, filters=(), columns=(), norm=None):
    """conv, BatchNorm, ReLU, unpadded conv, with zeros written into the weights instead of gates."""
    w1, w2 = weight(r, 8, 3, 3, 3), weight(r, 4, 8, 3, 3)
    w1[list(filters)] = 0
    w2[:, list(columns)] = 0
    return model(
        """(float[N,3,H,W] x) => (float[N,4,HO,WO] y) {
            c = Conv<pads=[1,1,1,1]>(x, w1)
            n = BatchNormalization(c, bn_s, bn_b, bn_m, bn_v)
            m = Relu(n)
            y = Conv(m, w2, b2)
        }""",
        w1=w1, w2=w2, b2=vector(r, 4), **batch_norm(r, 8, "bn", norm),
    )  # fmt: skip


@case(params=image_params(5) + 4 * 5)
def zero_filters_with_a_live_norm(r):
    return zeroed(r, filters=(1, 4, 6), norm=DEAD)


@case(params=image_params(5) + 4 * 5)
def zero_filters_and_zero_norm(r):
    made = zeroed(r, filters=(1, 4, 6), norm={1: 0.0, 4: 0.0, 6: 0.0})
    for t in made.graph.initializer:
        if t.name in ("bn_s", "bn_b"):
            import numpy as np
            from onnx import numpy_helper

            a = np.array(numpy_helper.to_array(t))
            a[[1, 4, 6]] = 0
            t.CopyFrom(numpy_helper.from_array(a, t.name))
    return made


@case(params=image_params(5) + 4 * 5)
def zero_columns_of_the_reader_only(r):
    return zeroed(r, columns=(1, 4, 6))


@case(params=image_params(3) + 4 * 3)
def zero_filters_and_other_zero_columns(r):
    return zeroed(r, filters=(1, 4, 6), columns=(0, 1, 5), norm=DEAD)


@case(params=1 * 27 + 1 + 4 * 1 * 9 + 4, constant_output=True)  # one index stays: axes of size 0 are refused
def whole_conv_layer_closed(r):
    return image(r, "m = Relu(g)", closed=tuple(range(8)))


@case(params=1 * 27 + 1 + 4 + 4 * 9 + 4, constant_output=True)
def whole_conv_layer_closed_before_norm(r):
    return image(r, NORM_RELU, closed=tuple(range(8)), **batch_norm(r, 8, "bn", dict.fromkeys(range(8), 0.6)))


def grouped(r, closed, group=2, text="y = Conv(c, w3, b3)", outputs=6, **weights):
    return model(
        f"""(float[N,3,H,W] x) => (float[N,4,H,W] y) {{
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            g = Mul(h, gate)
            c = Conv<pads=[1,1,1,1], group={group}>(g, w2, b2)
            {text}
        }}""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=channels(gate(r, 8, closed)),
        w2=weight(r, outputs, 8 // group, 3, 3), b2=vector(r, outputs), w3=weight(r, 4, outputs, 1, 1),
        b3=vector(r, 4), **weights,
    )  # fmt: skip


@case(params=6 * 28 + 6 * 3 * 9 + 6 + 4 * 6 + 4)
def grouped_conv_with_even_survivors(r):
    return grouped(r, (0, 5))


@case(params=4 * 28 + 3 * 4 * 9 + 3 + 4 * 3 + 4)  # its outputs are constants: into the last bias
def grouped_conv_with_one_whole_group_closed(r):
    return grouped(r, (0, 1, 2, 3))


@case(params=6 * 28 + 6 * 3 * 9 + 6 + 4 * 6 + 4)  # the maximum of the survivors in each group
def grouped_conv_with_uneven_survivors(r):
    return grouped(r, (0, 1, 5))


@case(equality="4 groups of 2, survivors 0, 1, 2, 1: whole groups or padding, as it pays")
def grouped_conv_with_closed_and_uneven_groups(r):
    return grouped(r, (0, 1, 3, 6), group=4, outputs=8)


@case(params=36 * 28 + 36 * 12 * 9 + 36 + 36 * 9 + 4 * 36 + 4)
def constants_in_front_of_a_padded_grouped_conv_of_static_size(r):
    """12 of 16 inputs of each of 3 groups stay; what the others add is a map with 3 x 3 different places."""
    dead = {k: float(r.uniform(0.5, 1.5)) for k in (0, 3, 6, 9, 16, 17, 19, 31, 33, 34, 40, 47)}
    return model(
        """(float[N,3,24,24] x) => (float[N,4,24,24] y) {
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            g = Mul(h, gate)
            n = BatchNormalization(g, bn_s, bn_b, bn_m, bn_v)
            a = Relu(n)
            c = Conv<pads=[1,1,1,1], group=3>(a, w2, b2)
            y = Conv(c, w3, b3)
        }""",
        w1=weight(r, 48, 3, 3, 3), b1=vector(r, 48), gate=channels(gate(r, 48, tuple(dead))),
        **batch_norm(r, 48, "bn", dead), w2=weight(r, 36, 16, 3, 3), b2=vector(r, 36),
        w3=weight(r, 4, 36, 1, 1), b3=vector(r, 4),
    )  # fmt: skip


@case(params=8 * 28 + 4 * 4 * 9 + 4 + 4 * 4 + 4)  # two outputs per group stay
def grouped_conv_whose_outputs_are_gated(r):
    text = "d = Mul(c, gate2)\n y = Conv(d, w3, b3)"
    return grouped(r, (), text=text, gate2=channels(gate(r, 6, (0, 4))))


@case(equality="uneven outputs per group")
def grouped_conv_whose_outputs_are_gated_unevenly(r):
    text = "d = Mul(c, gate2)\n y = Conv(d, w3, b3)"
    return grouped(r, (0, 5, 6), text=text, gate2=channels(gate(r, 6, (3, 4))))


@case(equality="one group has no reader left")
def grouped_conv_with_a_group_nobody_reads(r):
    text = "d = Mul(c, gate2)\n y = Conv(d, w3, b3)"
    return grouped(r, (5,), text=text, gate2=channels(gate(r, 6, (0, 1, 2))))


@case(params=5 * 28 + 5 * 9 + 5 + 4 * 5 + 4)
def depthwise_conv_of_zero_channels(r):
    return grouped(r, (1, 4, 6), group=8, outputs=8)


@case(params=5 * 28 + 10 * 9 + 10 + 4 * 10 + 4)
def depthwise_conv_with_multiplier_two(r):
    return grouped(r, (1, 4, 6), group=8, outputs=16)


@case(params=5 * 28 + 5 * 9 + 5 + 4 * 5 + 4)
def depthwise_conv_whose_output_is_gated(r):
    text = "d = Mul(c, gate2)\n y = Conv(d, w3, b3)"
    return grouped(r, (), group=8, outputs=8, text=text, gate2=channels(gate(r, 8)))


@case(equality="one output of a multiplier of two is gated: the other still needs its input")
def depthwise_conv_with_multiplier_two_and_one_output_gated(r):
    text = "d = Mul(c, gate2)\n y = Conv(d, w3, b3)"
    return grouped(r, (), group=8, outputs=16, text=text, gate2=channels(gate(r, 16, (0, 1, 3, 4, 11, 14, 15))))


def depthwise_of_constants(r, size, pads):
    return model(
        f"""(float[N,3,{size}] x) => (float[N,4,HO,WO] y) {{
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            g = Mul(h, gate)
            n = BatchNormalization(g, bn_s, bn_b, bn_m, bn_v)
            a = Clip(n, zero, six)
            d = Conv<pads=[{pads}], group=8>(a, w2)
            e = BatchNormalization(d, bm_s, bm_b, bm_m, bm_v)
            f = Clip(e, zero, six)
            y = Conv(f, w3, b3)
        }}""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=channels(gate(r, 8)), w2=weight(r, 8, 1, 3, 3),
        w3=weight(r, 4, 8, 1, 1), b3=vector(r, 4), zero=0.0, six=6.0, **batch_norm(r, 8, "bn", DEAD),
        **batch_norm(r, 8, "bm"),
    )  # fmt: skip


# 3 of 32 channels stay; the map of 28 others has 3 x 3 different places
@case(params=3 * 4 + 3 * 9 + 4 * 3 + 4 * 9)
def maps_in_front_of_a_gate_that_closes_other_channels_too(r):
    first, second = gate(r, 32, range(28)), gate(r, 32, (28,))
    return model(
        """(float[N,3,14,14] x) => (float[N,4,14,14] y) {
            g = Conv(x, w1, b1)
            h = Mul(g, gate)
            n = BatchNormalization(h, bn_s, bn_b, bn_m, bn_v)
            d = Conv<pads=[1,1,1,1], group=32>(n, w2)
            e = Mul(d, gate2)
            y = Conv(e, w3)
        }""",
        w1=weight(r, 32, 3, 1, 1), b1=vector(r, 32), gate=channels(first), gate2=channels(second),
        w2=weight(r, 32, 1, 3, 3), w3=weight(r, 4, 32, 1, 1), **batch_norm(r, 32, "bn", dict.fromkeys(range(28), 0.5)),
    )  # fmt: skip


@case(params=7 * 28 + 7 * 9 + 4 * 7 + 4 * 7 + 4 * 7 + 4)  # channels 1 and 4 differ at the border; channel 6 is zero
def padded_depthwise_conv_of_constants(r):
    return depthwise_of_constants(r, "H,W", "1,1,1,1")


@case(params=7 * 28 + 7 * 9 + 4 * 7 + 4 * 7 + 4 * 7 + 4 + 2 * 36)
def padded_depthwise_conv_of_constants_of_static_size(r):
    return depthwise_of_constants(r, "6,6", "1,1,1,1")


@case(params=5 * 28 + 5 * 9 + 4 * 5 + 4 * 5 + 4 * 5 + 4)
def unpadded_depthwise_conv_of_constants(r):
    return depthwise_of_constants(r, "H,W", "0,0,0,0")


def transposed(r, middle, attributes, group=1, gate2=None, closed=(1, 4, 6), **weights):
    return model(
        f"""(float[N,3,H,W] x) => (float[N,4,HO,WO] y) {{
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            g = Mul(h, gate)
            {middle}
            t = ConvTranspose<{attributes}, group={group}>(m, w2, b2)
            {'u = Mul(t, gate2)' if gate2 is not None else 'u = Relu(t)'}
            y = Conv(u, w3, b3)
        }}""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=channels(gate(r, 8, closed)), w2=weight(r, 8, 6 // group, 3, 3),
        b2=vector(r, 6), w3=weight(r, 4, 6, 1, 1), b3=vector(r, 4),
        **({} if gate2 is None else {"gate2": channels(gate2)}), **weights,
    )  # fmt: skip


@case(params=5 * 28 + 5 * 6 * 9 + 6 + 4 * 6 + 4)
def transposed_conv_reads_zero_channels(r):
    return transposed(r, "m = Relu(g)", "strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]")


@case(params=5 * 28 + 5 * 4 * 9 + 4 + 4 * 4 + 4)
def transposed_conv_with_gated_inputs_and_outputs(r):
    return transposed(r, "m = Relu(g)", "strides=[2,2]", gate2=gate(r, 6, (0, 5)))


@case(params=6 * 28 + 4 * 6 + 6 * 6 * 9 + 6 + 4 * 6 + 4)  # its border differs even without padding
def transposed_conv_of_constants(r):
    return transposed(r, NORM_RELU, "strides=[2,2]", **batch_norm(r, 8, "bn", DEAD))


@case(params=6 * 28 + 6 * 3 * 9 + 6 + 4 * 6 + 4)
def grouped_transposed_conv_with_even_survivors(r):
    return transposed(r, "m = Relu(g)", "strides=[2,2]", group=2, closed=(2, 7))


@case(equality="uneven groups")
def grouped_transposed_conv_with_uneven_survivors(r):
    return transposed(r, "m = Relu(g)", "dilations=[2,2]", group=2, closed=(1, 2, 7), gate2=gate(r, 6, (3,)))


def other_rank(name, dims, kernel, n, params):
    spatial = ",".join(dims)

    def build(r):
        pads = ",".join(["1"] * (2 * n))
        return model(
            f"""(float[N,3,{spatial}] x) => (float[N,4,{spatial}] y) {{
                h = Conv<pads=[{pads}]>(x, w1, b1)
                g = Mul(h, gate)
                s = Sigmoid(g)
                y = Conv<pads=[{pads}]>(s, w2, b2)
            }}""",
            w1=weight(r, 8, 3, *kernel), b1=vector(r, 8), gate=gate(r, 8).reshape(8, *[1] * n),
            w2=weight(r, 4, 8, *kernel), b2=vector(r, 4),
        )  # fmt: skip

    add(name, __name__, build, params=params)


other_rank("conv_over_one_dimension", ["L"], (3,), 1, params=6 * 9 + 6 + 4 * 6 * 3 + 4)
other_rank("conv_over_three_dimensions", ["S", "H", "W"], (3, 3, 3), 3, params=6 * 81 + 6 + 4 * 6 * 27 + 4)


@case(params=6 * 28 + 4 * 6 * 9 + 4 + 2 * 6 * 9 + 2)  # sigmoid(0): the padded reader needs a representative
def constants_read_by_a_padded_and_an_unpadded_conv(r):
    return model(
        """(float[N,3,H,W] x) => (float[N,4,H,W] y, float[N,2,HO,WO] z) {
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            g = Mul(h, gate)
            s = Sigmoid(g)
            y = Conv<pads=[1,1,1,1]>(s, w2, b2)
            z = Conv(s, w3, b3)
        }""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=channels(gate(r, 8)), w2=weight(r, 4, 8, 3, 3), b2=vector(r, 4),
        w3=weight(r, 2, 8, 3, 3), b3=vector(r, 2),
    )  # fmt: skip
