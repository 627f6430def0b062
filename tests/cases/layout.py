"""Operators that move indices: Concat, Split, Slice, Gather, Reshape, Transpose, Pad, Resize and their kin."""

from __future__ import annotations

import numpy as np

from cases.sandwich import DENSE_LIVE, dense, image, image_params
from cases.table import batch_norm, case, channels, gate, model, vector, weight

SIGMOID = "s = Sigmoid(g)\n "
NEAREST = 'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"'


@case(params=(5 + 6) * 28 + 4 * 11 * 9 + 4)
def concat_of_two_gated_branches(r):
    text = "k = Conv<pads=[1,1,1,1]>(x, w3, b3)\n z = Mul(k, gate2)\n c = Concat<axis=1>(g, z)\n m = Relu(c)"
    weights = {"w3": weight(r, 8, 3, 3, 3), "b3": vector(r, 8), "gate2": channels(gate(r, 8, (0, 7)))}
    return image(r, text, width=16, **weights)


@case(params=5 * 28 + 4 * 8 * 9 + 4)  # the graph's input keeps its three channels
def concat_with_the_graph_input(r):
    return image(r, "m = Concat<axis=-3>(x, g)", width=11)


@case(params=image_params(5, width=10))
def concat_with_itself(r):
    return image(r, "a = Relu(g)\n m = Concat<axis=1>(a, g)", width=16)


@case(params=image_params(5, width=7) + 60)
def concat_with_constant_channels(r):
    return model(
        """(float[1,3,5,6] x) => (float[1,4,5,6] y) {
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            g = Mul(h, gate)
            m = Concat<axis=1>(g, c)
            y = Conv<pads=[1,1,1,1]>(m, w2, b2)
        }""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=channels(gate(r, 8)), c=weight(r, 1, 2, 5, 6),
        w2=weight(r, 4, 10, 3, 3), b2=vector(r, 4),
    )  # fmt: skip


@case(params=DENSE_LIVE)
def concat_along_rows(r):
    return model(
        """(float[N,6] x) => (float[M,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            a = Sigmoid(g)
            m = Concat<axis=0>(g, a)
            y = Gemm<transB=1>(m, w2, b2)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8), w2=weight(r, 3, 8), b2=vector(r, 3),
    )  # fmt: skip


@case(params=5 * 28 + 4 * 2 * 9 + 4 + 4 * 3 * 9)
def split_into_equal_halves(r):
    text = "p, q = Split<axis=1, num_outputs=2>(g)\n b = Conv<pads=[1,1,1,1]>(q, w3)\n m = Relu(p)"
    return _with_side_output(r, text, 4, w3=weight(r, 4, 4, 3, 3))


@case(params=5 * 28 + 4 * 3 * 9 + 4 + 4 * 2 * 9)
def split_into_uneven_parts(r):
    text = "q, p = Split<axis=1>(g, parts)\n b = Conv<pads=[1,1,1,1]>(q, w3)\n m = Relu(p)"
    return _with_side_output(r, text, 5, w3=weight(r, 4, 3, 3, 3), parts=[3, 5])


def _with_side_output(r, text, width, **weights):
    made = image(r, text, width=width, **weights)
    made.graph.output.append(made.graph.output[0])
    made.graph.output[1].name = "b"
    return made


@case(params=4 * 6 + 4 + 3 * 2 + 3)
def halves_of_a_split_multiplied(r):
    """GLU: 0 and 4 meet, 1 and 5, 2 and 6, 3 and 7; closed are 4 and 6, hence 0 and 2 are unread."""
    text = "p, q = Split<axis=1, num_outputs=2>(g)\n s = Sigmoid(p)\n m = Mul(s, q)"
    return dense(r, text, width=4, closed=(4, 6))


@case(params=3 * 28 + 4 * 3 * 9 + 4)  # 0 to 2 are cut off, of the rest 4 and 6 are closed
def slice_of_channels(r):
    return image(r, "m = Slice(g, start, end, axis)", width=5, start=[3], end=[8], axis=[1])


@case(params=3 * 28 + 4 * 3 * 9 + 4)  # 7, 5, 3, 1 are read, 1 is closed
def slice_with_negative_step(r):
    return image(r, "m = Slice(g, start, end, axis, step)", width=4, start=[-1], end=[-100], axis=[-3], step=[-2])


@case(params=image_params(5))
def slice_of_pixels(r):
    return image(r, "m = Slice(g, start, end, axis)", start=[1, 0], end=[2147483647, -1], axis=[2, 3])


@case(params=image_params(5))
def pixels_rolled_by_slices_and_concat(r):
    text = "a = Slice(g, one, end, axis)\n b = Slice(g, zero, one, axis)\n m = Concat<axis=2>(a, b)"
    return image(r, text, one=[1], zero=[0], end=[9223372036854775807], axis=[2])


@case(params=5 * 28 + 4 * 5 * 9 + 4)
def gather_that_permutes_channels(r):
    return image(r, "m = Gather<axis=1>(g, order)", order=[3, 1, 4, 7, 5, 0, 2, 6])


@case(params=4 * 28 + 4 * 7 * 9 + 4)  # 0, 2, 3, 7 stay, 5 is never read; places of 1 and 6 go, seven stay
def gather_with_repeated_channels(r):
    return image(r, "m = Gather<axis=1>(g, order)", width=9, order=[0, 0, 1, 7, 2, 2, -1, 6, 3])


@case(params=5 * 6 + 5)
def gather_of_one_index_that_drops_the_axis(r):
    return model(
        """(float[N,6] x) => (float[N] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            p = Gather<axis=1>(g, k)
            s = ReduceSum<keepdims=0>(g, axes)
            y = Add(p, s)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8), k=np.int64(2), axes=[1],
    )  # fmt: skip


@case(equality="which channels are read depends on the input", integers={"order": (0, 8)})
def gather_with_indices_from_the_input(r):
    return model(
        """(float[N,6] x, int64[4] order) => (float[N,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            m = Gather<axis=1>(g, order)
            y = Gemm<transB=1>(m, w2, b2)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8), w2=weight(r, 3, 4), b2=vector(r, 3),
    )  # fmt: skip


def flattened(r, middle, closed=(1, 4, 6), pixels=6, text="", opset=20, width=8, act="a = Relu(g)", **weights):
    """conv, gate, MIDDLE to [N, 8 * pixels], Gemm."""
    return model(
        f"""(float[N,3,2,3] x) => (float[N,3] y) {{
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            g = Mul(h, gate)
            {act}
            {middle}
            y = Gemm<transB=1>(m, w2, b2)
        }}""",
        opset=opset, w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=channels(gate(r, 8, closed)),
        w2=weight(r, 3, width * pixels), b2=vector(r, 3), **weights,
    )  # fmt: skip


FLAT = 5 * 28 + 3 * 5 * 6 + 3


@case(params=FLAT)
def flatten_of_channels_and_pixels(r):
    return flattened(r, "m = Flatten(a)")


@case(params=FLAT)  # sigmoid(0) in each of the 18 places goes into the bias
def flatten_of_constant_channels(r):
    return flattened(r, "m = Flatten(a)", act="a = Sigmoid(g)")


@case(params=FLAT)
def reshape_that_merges_channels_and_pixels(r):
    return flattened(r, "m = Reshape(a, shape)", shape=[0, -1])


@case(params=FLAT)
def reshape_after_transpose_to_channels_last(r):
    return flattened(r, "t = Transpose<perm=[0,2,3,1]>(a)\n m = Reshape(t, shape)", shape=[-1, 48])


@case(params=FLAT)
def reshape_in_two_steps(r):
    return flattened(r, "t = Reshape(a, s1)\n m = Reshape(t, s2)", s1=[0, 8, 6], s2=[0, 48])


@case(params=FLAT)
def reshape_by_a_computed_shape(r):
    text = """t = Shape(a)
            n = Gather<axis=0>(t, zero)
            nv = Unsqueeze(n, zv)
            s = Concat<axis=0>(nv, rest)
            m = Reshape(a, s)"""
    return flattened(r, text, zero=np.int64(0), zv=[0], rest=[-1])


@case(params=FLAT)  # the width of the pruned axis itself is read from its shape
def reshape_by_the_shape_of_the_pruned_axis(r):
    text = """t = Shape(a)
            n = Slice(t, s0, s1)
            c = Slice(t, s1, s4)
            p = ReduceProd<keepdims=1>(c)
            s = Concat<axis=0>(n, p)
            m = Reshape(a, s)"""
    return flattened(r, text, s0=[0], s1=[1], s4=[4])


@case(params=5 * 28 + 3 * 5 * 6 + 3)
def gate_written_after_the_flatten(r):
    return model(
        """(float[N,3,2,3] x) => (float[N,3] y) {
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            f = Flatten(h)
            m = Mul(f, gate)
            y = Gemm<transB=1>(m, w2, b2)
        }""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=np.repeat(gate(r, 8), 6), w2=weight(r, 3, 48), b2=vector(r, 3),
    )  # fmt: skip


@case(params=6 * 28 + 3 * 36 + 3)  # scattered over channels: only channels that are closed everywhere go
def scattered_gate_after_the_flatten(r):
    z = gate(r, 48, (*range(6, 18), 0, 20, 31, 47))
    return model(
        """(float[N,3,2,3] x) => (float[N,3] y) {
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            f = Flatten(h)
            m = Mul(f, gate)
            y = Gemm<transB=1>(m, w2, b2)
        }""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=z, w2=weight(r, 3, 48), b2=vector(r, 3),
    )  # fmt: skip


@case(params=DENSE_LIVE)
def reshape_that_splits_and_merges_again(r):
    """[N, 8] -> [N, 2, 4] -> transpose -> [N, 8]: a channel shuffle of features."""
    text = "a = Reshape(g, s1)\n b = Transpose<perm=[0,2,1]>(a)\n m = Reshape(b, s2)"
    return dense(r, text, s1=[0, 2, 4], s2=[0, 8])


@case(params=6 * 6 + 6 + 3 * 3 + 3)
def reshape_that_splits_and_one_part_is_summed(r):
    """[N, 8] -> [N, 2, 4] -> sum over the first part: 1 and 5 meet, 2 and 6, ... closed are both of pair (1, 5)."""
    text = "a = Reshape(g, s1)\n m = ReduceSum<keepdims=0>(a, axes)"
    return dense(r, text, width=4, closed=(1, 5), s1=[0, 2, 4], axes=[1])


@case(equality="a rectangle is left only where both parts agree")
def reshape_that_splits_unevenly(r):
    text = "a = Reshape(g, s1)\n b = Tanh(a)\n c = MatMul(b, w3)\n m = Flatten(c)"
    return dense(r, text, width=10, closed=(1, 4, 5), s1=[0, 2, 4], w3=weight(r, 4, 5))


@case(params=image_params(5))
def channel_shuffle_of_an_image(r):
    text = """a = Reshape(g, s1)
            b = Transpose<perm=[0,2,1,3,4]>(a)
            m = Reshape(b, s2)"""
    return image(r, text, size="5,6", s1=[0, 2, 4, 5, 6], s2=[0, 8, 5, 6])


@case(equality="a shuffle between grouped convolutions couples groups on both sides")
def channel_shuffle_between_grouped_convs(r):
    return model(
        """(float[N,3,5,6] x) => (float[N,4,5,6] y) {
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            g = Mul(h, gate)
            c = Conv<group=2>(g, w2, b2)
            a = Reshape(c, s1)
            b = Transpose<perm=[0,2,1,3,4]>(a)
            d = Reshape(b, s2)
            e = Conv<group=8, pads=[1,1,1,1]>(d, w3)
            f = Mul(e, gate2)
            y = Conv<group=2>(f, w4, b4)
        }""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=channels(gate(r, 8, (0, 5))), w2=weight(r, 8, 4, 1, 1),
        b2=vector(r, 8), s1=[0, 2, 4, 5, 6], s2=[0, 8, 5, 6], w3=weight(r, 8, 1, 3, 3),
        gate2=channels(gate(r, 8, (1, 2, 5, 6))), w4=weight(r, 4, 4, 1, 1), b4=vector(r, 4),
    )  # fmt: skip


@case(params=5 * 28 + 5 * 4 + 4)
def transpose_to_channels_last_and_matmul(r):
    return model(
        """(float[N,3,H,W] x) => (float[N,H,W,4] y) {
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            t = Transpose<perm=[0,2,3,1]>(h)
            g = Mul(t, gate)
            a = Sigmoid(g)
            y0 = MatMul(a, w2)
            y = Add(y0, b2)
        }""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=gate(r, 8), w2=weight(r, 8, 4), b2=vector(r, 4),
    )  # fmt: skip


@case(params=image_params(5))
def unsqueeze_and_squeeze(r):
    return image(r, "a = Unsqueeze(g, ax)\n b = Relu(a)\n m = Squeeze(b, ax)", ax=[1])


@case(params=DENSE_LIVE)
def squeeze_of_every_axis_of_length_one(r):
    return model(
        """(float[2,6] x) => (float[2,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            u = Unsqueeze(g, ax)
            s = Squeeze(u)
            y = Gemm<transB=1>(s, w2, b2)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8), w2=weight(r, 3, 8), b2=vector(r, 3), ax=[0, 2],
    )  # fmt: skip


@case(params=image_params(5))
def gate_expanded_to_the_input(r):
    return model(
        """(float[N,3,H,W] x) => (float[N,4,H,W] y) {
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            s = Shape(h)
            e = Expand(gate, s)
            g = Mul(h, e)
            y = Conv<pads=[1,1,1,1]>(g, w2, b2)
        }""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=channels(gate(r, 8)), w2=weight(r, 4, 8, 3, 3), b2=vector(r, 4),
    )  # fmt: skip


@case(params=5 * 6 + 5 + 3 * 5 + 3)
def expand_along_a_new_axis(r):
    return model(
        """(float[N,6] x) => (float[N,4,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            u = Unsqueeze(g, ax)
            e = Expand(u, shape)
            y0 = MatMul(e, w2)
            y = Add(y0, b2)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8), w2=weight(r, 8, 3), b2=vector(r, 3), ax=[1],
        shape=[1, 4, 8],
    )  # fmt: skip


@case(params=5 * 28 + 4 * 10 * 9 + 4)
def tile_along_channels(r):
    return image(r, "m = Tile(g, times)", width=16, times=[1, 2, 1, 1])


@case(params=image_params(5))
def tile_along_pixels(r):
    return image(r, "m = Tile(g, times)", times=[1, 1, 2, 1])


def padded(mode, value=None, pads=(0, 0, 1, 2, 0, 0, 0, 1)):
    third = ", value" if value is not None else ""
    weights = {"pads_": list(pads)}
    if value is not None:
        weights["value"] = value
    return f'm = Pad<mode="{mode}">(g, pads_{third})', weights


@case(params=image_params(5))
def pixels_padded_with_zeros(r):
    text, weights = padded("constant")
    return image(r, text, **weights)


@case(equality="a dead channel is 0 inside and 1 at its border")
def pixels_padded_with_ones(r):
    text, weights = padded("constant", 1.0)
    return image(r, text, **weights)


@case(params=image_params(5))
def pixels_padded_by_reflection(r):
    text, weights = padded("reflect")
    return image(r, text, **weights)


@case(params=image_params(5))
def pixels_padded_by_their_edge(r):
    text, weights = padded("edge")
    return image(r, text, **weights)


@case(params=image_params(5, kernel=1))
def constants_padded_by_reflection(r):
    text, weights = padded("reflect")
    return image(r, SIGMOID + text.replace("(g,", "(s,"), kernel=1, pad=0, **weights)


@case(equality="a constant of one half is padded with zeros: not constant any more")
def constants_padded_with_zeros(r):
    text, weights = padded("constant")
    return image(r, SIGMOID + text.replace("(g,", "(s,"), kernel=1, pad=0, **weights)


@case(params=image_params(5, kernel=1))  # padding with the very constant
def constants_padded_with_themselves(r):
    text, weights = padded("constant", 0.5)
    return image(r, SIGMOID + text.replace("(g,", "(s,"), kernel=1, pad=0, **weights)


@case(params=image_params(5))  # the three padded channels are zero
def channels_padded_with_zeros(r):
    text, weights = padded("constant", pads=(0, 1, 0, 0, 0, 2, 0, 0))
    return image(r, text, width=11, **weights)


@case(equality="the padded channels are ones, the padded reader needs them")
def channels_padded_with_ones(r):
    text, weights = padded("constant", 1.0, pads=(0, 1, 0, 0, 0, 2, 0, 0))
    return image(r, text, width=11, **weights)


@case(equality="a reflection along the channels copies them")
def channels_padded_by_reflection(r):
    text, weights = padded("reflect", pads=(0, 1, 0, 0, 0, 2, 0, 0))
    return image(r, text, width=11, **weights)


@case(equality="negative padding cuts channels off")
def channels_cropped_by_negative_padding(r):
    text, weights = padded("constant", pads=(0, -1, 0, 0, 0, -2, 0, 1))
    return image(r, text, width=5, **weights)


@case(params=image_params(5))
def pad_with_named_axes(r):
    return image(r, 'm = Pad(g, pads_, "", axes_)', pads_=[1, 1], axes_=[3])


@case(params=image_params(5) + 4)  # and the four scales
def resize_by_nearest_neighbour(r):
    return image(r, f'm = Resize<{NEAREST}>(g, "", scales)', scales=[1.0, 1.0, 2.0, 2.0])


@case(params=image_params(5) + 4)  # and the four scales
def resize_by_linear_interpolation(r):
    return image(r, 'm = Resize<mode="linear">(g, "", scales)', scales=[1.0, 1.0, 2.0, 1.5])


@case(params=image_params(5, kernel=1) + 4)  # the weights of an interpolation sum to one
def resize_of_constants(r):
    text = SIGMOID + 'm = Resize<mode="linear">(s, "", scales)'
    return image(r, text, kernel=1, pad=0, scales=[1.0, 1.0, 2.0, 2.0])


@case(params=image_params(5))  # to a size read from another branch
def resize_to_a_computed_size(r):
    return model(
        f"""(float[N,3,H,W] x) => (float[N,4,H,W] y) {{
            p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)
            h = Conv<pads=[1,1,1,1]>(p, w1, b1)
            g = Mul(h, gate)
            sx = Shape(x)
            hw = Slice(sx, two, four)
            sg = Shape(g)
            nc = Slice(sg, nought, two)
            size = Concat<axis=0>(nc, hw)
            u = Resize<{NEAREST}>(g, "", "", size)
            y = Conv<pads=[1,1,1,1]>(u, w2, b2)
        }}""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=channels(gate(r, 8)), w2=weight(r, 4, 8, 3, 3), b2=vector(r, 4),
        nought=[0], two=[2], four=[4],
    )  # fmt: skip


def pixel_shuffle(r, operator, closed, width, channels_in=8, size="H,W", out="HO,WO"):
    return model(
        f"""(float[N,3,{size}] x) => (float[N,4,{out}] y) {{
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            g = Mul(h, gate)
            m = {operator}(g)
            y = Conv<pads=[1,1,1,1]>(m, w2, b2)
        }}""",
        w1=weight(r, channels_in, 3, 3, 3), b1=vector(r, channels_in), gate=channels(gate(r, channels_in, closed)),
        w2=weight(r, 4, width, 3, 3), b2=vector(r, 4),
    )  # fmt: skip


@case(params=8 * 28 + 4 * 2 * 9 + 4)  # block (i, j) of channel 1: inputs 1, 4, 7, 10
def depth_to_space_with_a_whole_output_channel_closed(r):
    return pixel_shuffle(r, 'DepthToSpace<blocksize=2, mode="DCR">', (1, 4, 7, 10), 3, 12)


@case(params=8 * 28 + 4 * 2 * 9 + 4)  # channel 1 is made of inputs 4 to 7
def depth_to_space_in_column_order_with_a_whole_output_channel_closed(r):
    return pixel_shuffle(r, 'DepthToSpace<blocksize=2, mode="CRD">', (4, 5, 6, 7), 3, 12)


@case(equality="a block of pixels is zero, not a channel")
def depth_to_space_with_scattered_closed_channels(r):
    return pixel_shuffle(r, "DepthToSpace<blocksize=2>", (0, 1, 4, 6), 3, 12)


@case(params=2 * 28 + 4 * 8 * 9 + 4)
def space_to_depth_of_gated_channels(r):
    return pixel_shuffle(r, "SpaceToDepth<blocksize=2>", (1, 3), 16, 4, size="6,8")


@case(params=DENSE_LIVE)  # a mixture of the moves above
def reverse_by_negative_step_twice(r):
    text = "a = Slice(g, start, end, axis, step)\n b = Relu(a)\n m = Slice(b, start, end, axis, step)"
    return dense(r, text, start=[-1], end=[-9], axis=[1], step=[-1])


@case(equality="a scatter writes the input into constant places")
def scatter_of_features(r):
    return model(
        """(float[2,6] x) => (float[2,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            m = ScatterElements<axis=1>(base, places, g)
            y = Gemm<transB=1>(m, w2, b2)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8), base=weight(r, 2, 10),
        places=np.tile(np.array([9, 0, 3, 2, 5, 4, 7, 8]), (2, 1)), w2=weight(r, 3, 10), b2=vector(r, 3),
    )  # fmt: skip


@case(equality="gathered element by element")
def gather_elements_of_features(r):
    return model(
        """(float[2,6] x) => (float[2,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            m = GatherElements<axis=1>(g, places)
            y = Gemm<transB=1>(m, w2, b2)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8), places=np.array([[0, 1, 2, 2], [7, 6, 1, 0]]),
        w2=weight(r, 3, 4), b2=vector(r, 3),
    )  # fmt: skip


@case(equality="the number of closed channels is read as data")
def width_of_the_gated_axis_used_as_a_number(r):
    text = """sh = Shape(g)
            w = Gather<axis=0>(sh, one)
            wf = Cast<to=1>(w)
            root = Sqrt(wf)
            m = Div(g, root)"""
    return dense(r, text, one=np.int64(1))


@case(equality="the number of elements is read as data")
def size_of_the_gated_value_used_as_a_number(r):
    return dense(r, "n = Size(g)\n nf = Cast<to=1>(n)\n m = Div(g, nf)")


@case(params=image_params(5) + 4 * 5)
def padding_written_as_an_operator_before_an_unpadded_conv(r):
    text = "n = BatchNormalization(g, bn_s, bn_b, bn_m, bn_v)\n a = Relu(n)\n m = Pad(a, pads_)"
    return image(r, text, pad=0, pads_=[0, 0, 1, 1, 0, 0, 1, 1], **batch_norm(r, 8, "bn", {1: -0.7, 4: -1.3, 6: -0.9}))


@case(equality="padding with zeros of a constant that is not zero")
def padding_of_constants_written_as_an_operator(r):
    text = "n = BatchNormalization(g, bn_s, bn_b, bn_m, bn_v)\n a = Relu(n)\n m = Pad(a, pads_)"
    return image(r, text, pad=0, pads_=[0, 0, 1, 1, 0, 0, 1, 1], **batch_norm(r, 8, "bn", {1: 0.7, 4: 1.3, 6: -0.9}))


@case(params=image_params(5))
def resize_to_given_sizes(r):
    return model(
        f"""(float[2,3,6,7] x) => (float[2,4,9,14] y) {{
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            g = Mul(h, gate)
            u = Resize<{NEAREST}>(g, "", "", size)
            y = Conv<pads=[1,1,1,1]>(u, w2, b2)
        }}""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=channels(gate(r, 8)), w2=weight(r, 4, 8, 3, 3), b2=vector(r, 4),
        size=[2, 8, 9, 14],
    )  # fmt: skip


def strided_view(r, width: int, table: list[int]):
    """Global means of 8 gated channels, flattened and read by the indices width * n + table: as_strided exported."""
    text = """rm = ReduceMean(g, spatial)
            flat = Reshape(rm, minus_one)
            dim = Shape<start=0, end=1>(x)
            count = Squeeze(dim)
            rows = Range(zero, count, one)
            starts = Mul(rows, width)
            column = Unsqueeze(starts, last)
            index = Add(column, table)
            v = Gather(flat, index)
            m = Reshape(v, target)"""
    return model(
        f"""(float[N,3,H,W] x) => (float[N,4] y) {{
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            g = Mul(h, gate)
            {text}
            y = Gemm<transB=1>(m, w2, b2)
        }}""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=channels(gate(r, 8)), w2=weight(r, 4, 8), b2=vector(r, 4),
        spatial=[2, 3], minus_one=[-1], zero=0, one=1, width=width, last=[1], table=[table], target=[-1, 8],
    )  # fmt: skip


@case(params=5 * 28 + 4 * 5 + 4)
def strided_view_that_counts_all_elements_in_order(r):
    return strided_view(r, 8, [0, 1, 2, 3, 4, 5, 6, 7])


@case(equality="the indices are in another order, and a run-time gather keeps its axis")
def strided_view_that_reverses_each_row(r):
    return strided_view(r, 8, [7, 6, 5, 4, 3, 2, 1, 0])


@case(equality="the rows overlap")
def strided_view_whose_rows_overlap(r):
    return strided_view(r, 0, [0, 1, 2, 3, 4, 5, 6, 7])
