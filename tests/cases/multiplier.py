"""Depthwise convolutions with a multiplier between two streams of channels that are gated each for itself.

Input i of 16 makes outputs 2 i and 2 i + 1. Both sides have other readers and writers, so that nothing is dead on
both sides at once: an input may go while its outputs stay, as what another branch adds to them is alive.
"""

from __future__ import annotations

from cases.table import batch_norm, case, channels, gate, model, vector, weight

CLOSED = (0, 2, 3, 6, 9, 10, 12, 15)
CLOSED_OUTPUTS = (0, 1, 2, 4, 7, 8, 9, 13, 14, 18, 19, 20, 22, 25, 28, 31)
# Constants behind a BatchNorm; channel 3 is an exact zero there as well
CONSTANTS = {0: 0.7, 2: -0.4, 3: 0.0, 6: 1.3, 9: -1.1, 10: 0.6, 12: 0.9, 15: 0.2}


def streams(r, spread, joined, middle="m = Identity(g)", size="H,W", out="HO,WO", closed=CLOSED, outputs=CLOSED_OUTPUTS,
            w2=None, w4=None, w5=None, **weights):  # fmt: skip
    """16 channels that `v` reads too, `spread` to 32, to which `joined` adds what it makes of x."""
    return model(
        f"""(float[N,3,{size}] x) => (float[N,4,{size}] v, float[N,32,{out}] y) {{
            h = Conv(x, w1, b1)
            g = Mul(h, gate)
            {middle}
            v = Conv(m, w5)
            d = {spread}
            t = {joined}
            s = Add(d, t)
            e = Mul(s, gate2)
            y = Conv(e, w3, b3)
        }}""",
        w1=weight(r, 16, 3, 1, 1), b1=vector(r, 16), gate=channels(gate(r, 16, closed)),
        w2=weight(r, 32, 1, 3, 3) if w2 is None else w2, b2=vector(r, 32),
        w4=weight(r, 32, 3, 3, 3) if w4 is None else w4, gate2=channels(gate(r, 32, outputs)),
        w5=weight(r, 4, 16, 1, 1) if w5 is None else w5,
        w3=weight(r, 32, 32, 1, 1), b3=vector(r, 32), **weights,
    )  # fmt: skip


# 8 inputs with bias and reader, 16 outputs with bias, what is added to them, and their reader
SPREAD = 8 * 4 + 4 * 8 + 16 * 9 + 16 + 16 * 27 + 32 * 16 + 32


@case(params=SPREAD)
def multiplier_between_streams(r):
    return streams(r, "Conv<pads=[1,1,1,1], group=16>(m, w2, b2)", "Conv<pads=[1,1,1,1]>(x, w4)")


NORM = "m = BatchNormalization(g, bn_s, bn_b, bn_m, bn_v)"


@case(params=SPREAD + 4)  # what the constants add goes into the bias of d, and v gets one
def multiplier_of_constants_without_padding(r):
    return streams(r, "Conv<group=16>(m, w2, b2)", "Conv(x, w4)", NORM, **batch_norm(r, 16, "bn", CONSTANTS))


@case(params=SPREAD + 6 * (4 + 4) + 4)  # of 7 constants 6 have outputs that stay and are no constants at the border
def multiplier_of_constants_with_padding(r):
    return streams(
        r, "Conv<pads=[1,1,1,1], group=16>(m, w2, b2)", "Conv<pads=[1,1,1,1]>(x, w4)", NORM,
        **batch_norm(r, 16, "bn", CONSTANTS),
    )  # fmt: skip


# 4 inputs of 16, in front of them a depthwise convolution; behind d and v the maps of the others, which have 5 x 5
# different places (two padded convolutions) and 3 x 3
@case(params=4 * 4 + 4 * 9 + 4 * 4 + 16 * 9 + 16 + 16 * 27 + 32 * 16 + 32 + 16 * 25 + 4 * 9)
def multiplier_of_maps_that_do_not_depend_on_the_input(r):
    closed = [i for i in range(16) if i % 4 != 1]
    return streams(
        r, "Conv<pads=[1,1,1,1], group=16>(m, w2, b2)", "Conv<pads=[1,1,1,1]>(x, w4)",
        "n = BatchNormalization(g, bn_s, bn_b, bn_m, bn_v)\nm = Conv<pads=[1,1,1,1], group=16>(n, w6)",
        size="14,14", out="14,14", closed=closed, w6=weight(r, 16, 1, 3, 3),
        **batch_norm(r, 16, "bn", {i: 0.1 * (i + 2) for i in closed}),
    )  # fmt: skip


@case(equality="the inputs go or stay by what is read of them alone")
def multiplier_that_alone_reads_its_inputs(r):
    w5 = weight(r, 4, 16, 1, 1)
    w5[:, 4:] = 0
    return streams(r, "Conv<pads=[1,1,1,1], group=16>(m, w2, b2)", "Conv<pads=[1,1,1,1]>(x, w4)", closed=(), w5=w5)


@case(params=SPREAD)
def transposed_multiplier_between_streams(r):
    return streams(
        r, "ConvTranspose<strides=[2,2], group=16>(m, w2, b2)", "ConvTranspose<strides=[2,2]>(x, w4)",
        w2=weight(r, 16, 2, 3, 3), w4=weight(r, 3, 32, 3, 3),
    )  # fmt: skip


@case(params=SPREAD)  # the outputs that stay are those of every input that stays, two by two
def multiplier_with_equally_many_outputs_of_every_input(r):
    outputs = [j for j in range(32) if j // 2 in CLOSED]
    return streams(r, "Conv<pads=[1,1,1,1], group=16>(m, w2, b2)", "Conv<pads=[1,1,1,1]>(x, w4)", outputs=outputs)
