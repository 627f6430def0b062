"""What else could go wrong: operands that are computed, outputs that are odd, names that collide, axes that lie."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser

from cases.sandwich import DENSE_LIVE, dense, image, image_params
from cases.table import batch_norm, case, channels, gate, model, tensor, vector, weight


def renamed(made: onnx.ModelProto, names: dict[str, str]) -> onnx.ModelProto:
    """The same graph with other names for values and initializers."""
    for node in made.graph.node:
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
    for t in made.graph.initializer:
        t.name = names.get(t.name, t.name)
    return made


@case(params=5 * 6 + 5 + 2 * (5 * 3 + 3))  # two products without a bias, two inserted sums, no node has a name
def two_inserted_sums_behind_nodes_without_names(r):
    return model(
        """(float[N,6] x) => (float[N,3] y, float[N,3] z) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            m = Sigmoid(g)
            y = MatMul(m, w2)
            z = MatMul(m, w3)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8), w2=weight(r, 8, 3), w3=weight(r, 8, 3),
    )  # fmt: skip


@case(params=5 * 6 + 5 + 5 * 3 + 3)
def nodes_called_like_inserted_nodes(r):
    made = model(
        """(float[N,6] x) => (float[N,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            m = Sigmoid(g)
            q = MatMul(m, w2)
            y = Relu(q)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8), w2=weight(r, 8, 3),
    )  # fmt: skip
    names = ("product_add", "product_shape", "", "product", "product_compact0")
    for node, name in zip(made.graph.node, names, strict=True):
        node.name = name
    return made


@case(params=DENSE_LIVE)
def initializers_called_like_new_initializers(r):
    names = {"w1": "y_compact0", "gate": "y_compact1", "b1": "w2_use1", "w2": "g_compact0", "b2": "h_constant"}
    return renamed(dense(r, "m = Sigmoid(g)"), names)


@case(params=5 * 6 + 5 + 2 * 5 * 3 + 3)
def values_called_like_new_values(r):
    made = model(
        """(float[N,6] x) => (float[N,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            m = Sigmoid(g)
            q = MatMul(m, w2)
            t = MatMul(m, w2)
            y = Add(q, t)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8), w2=weight(r, 8, 3),
    )  # fmt: skip
    return renamed(made, {"h": "q_before_add", "g": "w2_use1", "m": "q_compact0", "t": "q_before_add_compact0"})


@case(params=DENSE_LIVE)
def function_of_another_domain_called_relu(r):
    text = """<ir_version: 10, opset_import: ["" : 20, "mine" : 1]>
        case (float[N,6] x) => (float[N,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            m = mine.Relu(g)
            y = Gemm<transB=1>(m, w2, b2)
        }
        <domain: "mine", opset_import: ["" : 20]>
        Relu (v) => (o) {
            two = Constant<value = float {2.0}>()
            s = Add(v, two)
            o = Sigmoid(s)
        }"""
    made = onnx.parser.parse_model(text)
    weights = {"w1": weight(r, 8, 6), "b1": vector(r, 8), "gate": gate(r, 8), "w2": weight(r, 3, 8), "b2": vector(r, 3)}
    made.graph.initializer.extend(tensor(v, k) for k, v in weights.items())
    return made


@case(equality="the output is the other summand itself")
def closed_branch_added_to_the_input_is_the_output(r):
    return model(
        """(float[N,6] x) => (float[N,6] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            k = MatMul(g, w2)
            y = Add(x, k)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=np.zeros(8, np.float32), w2=weight(r, 8, 6),
    )  # fmt: skip


@case(equality="both outputs are the same value after the branch has gone")
def closed_branch_between_two_outputs(r):
    return model(
        """(float[N,6] x) => (float[N,6] t, float[N,6] y) {
            t = Tanh(x)
            h = Gemm<transB=1>(t, w1, b1)
            g = Mul(h, gate)
            k = MatMul(g, w2)
            y = Add(t, k)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=np.zeros(8, np.float32), w2=weight(r, 8, 6),
    )  # fmt: skip


@case(equality="every output is a constant", constant_output=True)
def gate_that_closes_the_output(r):
    return model(
        """(float[N,6] x) => (float[N,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            y = Mul(h, gate)
        }""",
        w1=weight(r, 3, 6), b1=vector(r, 3), gate=np.zeros(3, np.float32),
    )  # fmt: skip


@case(equality="the output has closed features, and must keep their places")
def gate_on_the_output(r):
    return model(
        """(float[N,6] x) => (float[N,8] y) {
            h = Gemm<transB=1>(x, w1, b1)
            y = Mul(h, gate)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8),
    )  # fmt: skip


@case(nothing="nothing is computed")
def output_that_is_the_input(r):
    return model("(float[N,6] x) => (float[N,6] y) { y = Identity(x) }")


@case(equality="nothing depends on the input", constant_output=True)
def output_that_is_a_constant(r):
    return model("(float[N,6] x) => (float[3] y) { y = Identity(w) }", w=vector(r, 3))


@case(equality="the weight of the convolution is computed from the input")
def conv_with_a_computed_weight(r):
    return model(
        """(float[1,3,H,W] x, float[1,5] v) => (float[1,4,H,W] y) {
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            g = Mul(h, gate)
            k0 = MatMul(v, w2)
            k = Reshape(k0, shape)
            y = Conv<pads=[1,1,1,1]>(g, k)
        }""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=channels(gate(r, 8)), w2=weight(r, 5, 4 * 8 * 9),
        shape=[4, 8, 3, 3],
    )  # fmt: skip


@case(equality="the filters of the gated convolution are computed from the input")
def gated_conv_with_a_computed_weight_and_bias(r):
    return model(
        """(float[1,3,H,W] x, float[1,5] v) => (float[1,4,H,W] y) {
            k0 = MatMul(v, wk)
            k = Reshape(k0, shape)
            c0 = MatMul(v, wc)
            c = Squeeze(c0, zero)
            h = Conv<pads=[1,1,1,1]>(x, k, c)
            g = Mul(h, gate)
            m = Sigmoid(g)
            y = Conv<pads=[1,1,1,1]>(m, w2, b2)
        }""",
        wk=weight(r, 5, 8 * 27), wc=weight(r, 5, 8), zero=[0], shape=[8, 3, 3, 3], gate=channels(gate(r, 8)),
        w2=weight(r, 4, 8, 3, 3), b2=vector(r, 4),
    )  # fmt: skip


@case(equality="the third operand of Gemm is another layer's output")
def gemm_whose_addend_is_computed(r):
    text = "v = Gemm<transB=1>(x, w3, b3)\n p = Gemm<transB=1>(g, w4, v)\n q = Mul(p, gate2)\n m = Sigmoid(q)"
    return dense(r, text, w3=weight(r, 8, 6), b3=vector(r, 8), w4=weight(r, 8, 8), gate2=gate(r, 8, (0, 5)))


@case(equality="constants reach a Gemm whose addend is computed")
def constants_into_a_gemm_whose_addend_is_computed(r):
    text = "v = Gemm<transB=1>(x, w3, b3)\n s = Sigmoid(g)\n m = Gemm<transB=1, alpha=0.5, beta=2.0>(s, w4, v)"
    return dense(r, text, w3=weight(r, 8, 6), b3=vector(r, 8), w4=weight(r, 8, 8))


@case(equality="scale and bias of the norm are computed from the input (FiLM)")
def norm_with_a_computed_scale(r):
    return model(
        """(float[1,3,H,W] x, float[1,5] v) => (float[1,4,HO,WO] y) {
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            g = Mul(h, gate)
            s0 = MatMul(v, ws)
            s = Squeeze(s0, zero)
            c0 = MatMul(v, wc)
            c = Squeeze(c0, zero)
            n = BatchNormalization(g, s, c, mean, var)
            m = Relu(n)
            y = Conv(m, w2, b2)
        }""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=channels(gate(r, 8)), ws=weight(r, 5, 8), wc=weight(r, 5, 8),
        zero=[0],
        mean=vector(r, 8), var=r.uniform(0.5, 2, 8).astype(np.float32), w2=weight(r, 4, 8, 3, 3), b2=vector(r, 4),
    )  # fmt: skip


@case(equality="a closed channel comes out as its bias", no_onnxruntime="no training in this build")
def batch_norm_in_training_mode(r):
    return image(
        r, "m, rm, rv = BatchNormalization<training_mode=1, momentum=0.5>(g, bn_s, bn_b, bn_m, bn_v)",
        **batch_norm(r, 8, "bn"),
    )  # fmt: skip


@case(equality="the indices of a pool count through all channels")
def max_pool_whose_indices_are_read(r):
    text = "p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(g)\n f = Cast<to=1>(i)\n k = Mul(f, tiny)\n m = Add(p, k)"
    return image(r, text, tiny=0.01)


@case(equality="the padding that ceil_mode adds is not counted, that of the node is")
def average_pool_with_ceil_mode_that_counts_padding_of_constants(r):
    text = "s = Sigmoid(g)\n m = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1, count_include_pad=1>(s)"
    return image(r, text, kernel=1, pad=0)


@case(params=5 * 6 + 5 + 5 * 3)
def vectors_instead_of_matrices(r):
    return model(
        """(float[6] x) => (float[3] y) {
            h0 = MatMul(x, w1)
            h = Add(h0, b1)
            g = Mul(h, gate)
            m = Tanh(g)
            y = MatMul(m, w2)
        }""",
        w1=weight(r, 6, 8), b1=vector(r, 8), gate=gate(r, 8), w2=weight(r, 8, 3),
    )  # fmt: skip


@case(params=6 * 5 + 2 * 5 * 3 + 6)  # the constants of two batches need two biases
def one_activation_against_two_weights_by_broadcasting(r):
    return model(
        """(float[N,1,S,6] x) => (float[N,2,S,3] y) {
            h = MatMul(x, w1)
            g = Mul(h, gate)
            a = Sigmoid(g)
            y = MatMul(a, w2)
        }""",
        w1=weight(r, 6, 8), gate=gate(r, 8), w2=weight(r, 2, 8, 3),
    )  # fmt: skip


@case(equality="rows of a batch of known size are closed, and the rows are summed")
def gate_over_a_batch_of_known_size(r):
    return model(
        """(float[4,6] x) => (float[1,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            s = Sigmoid(g)
            p = Gemm<transB=1>(s, w2, b2)
            y = ReduceSum<keepdims=1>(p, axes)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 4, (1, 2)).reshape(4, 1), w2=weight(r, 3, 8),
        b2=vector(r, 3), axes=[0],
    )  # fmt: skip


@case(equality="tokens of a sequence of known length are closed before the attention")
def gate_over_tokens_of_known_number(r):
    return model(
        """(float[N,5,6] x) => (float[N,5,3] y) {
            q = MatMul(x, wq)
            k0 = MatMul(x, wk)
            k = Mul(k0, gate)
            v0 = MatMul(x, wv)
            v = Mul(v0, gate)
            kt = Transpose<perm=[0,2,1]>(k)
            dots = MatMul(q, kt)
            p = Softmax<axis=-1>(dots)
            y = MatMul(p, v)
        }""",
        wq=weight(r, 6, 4), wk=weight(r, 6, 4), wv=weight(r, 6, 3), gate=gate(r, 5, (1, 2)).reshape(5, 1),
    )  # fmt: skip


@case(equality="a column is broadcast to eight features by the gate itself")
def gate_that_widens_one_feature(r):
    return model(
        """(float[N,6] x) => (float[N,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            m = Sigmoid(g)
            y = Gemm<transB=1>(m, w2, b2)
        }""",
        w1=weight(r, 1, 6), b1=vector(r, 1), gate=gate(r, 8), w2=weight(r, 3, 8), b2=vector(r, 3),
    )  # fmt: skip


@case(equality="one feature is expanded to eight, of which three are closed")
def gate_behind_an_expansion(r):
    return model(
        """(float[N,6] x) => (float[N,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            e = Expand(h, shape)
            g = Mul(e, gate)
            y = Gemm<transB=1>(g, w2, b2)
        }""",
        w1=weight(r, 1, 6), b1=vector(r, 1), shape=[1, 8], gate=gate(r, 8), w2=weight(r, 3, 8), b2=vector(r, 3),
    )  # fmt: skip


@case(equality="the features of every position are repeated next to each other")
def resize_along_the_channels(r):
    how = 'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"'
    text = f'm = Resize<{how}>(g, "", scales)'
    return image(r, text, width=16, scales=[1.0, 2.0, 1.0, 1.0])


@case(params=image_params(5) + 2)  # and the two scales
def resize_with_named_axes(r):
    text = 'm = Resize<mode="nearest", axes=[2,3], coordinate_transformation_mode="asymmetric">(g, "", scales)'
    return image(r, text, scales=[2.0, 2.0])


@case(equality="cubic interpolation may leave the range of its inputs, not that of a constant")
def cubic_resize_of_constants(r):
    text = 's = Sigmoid(g)\n m = Resize<mode="cubic">(s, "", scales)'
    return image(r, text, kernel=1, pad=0, scales=[1.0, 1.0, 2.0, 2.0])


@case(equality="outside the image the sampling grid reads zeros")
def grid_sample_of_gated_channels(r):
    return model(
        """(float[N,3,H,W] x, float[N,4,5,2] grid) => (float[N,4,4,5] y) {
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            g = Mul(h, gate)
            s = Sigmoid(g)
            m = GridSample<mode="linear">(s, grid)
            y = Conv<pads=[1,1,1,1]>(m, w2, b2)
        }""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=channels(gate(r, 8)), w2=weight(r, 4, 8, 3, 3), b2=vector(r, 4),
    )  # fmt: skip


@case(params=5 * 6 + 5 + 3 * 4 + 3)  # 7 features in parts of 3, 3 and 1
def split_whose_last_part_is_smaller(r):
    return model(
        """(float[N,6] x) => (float[N,3] y, float[N,1] z) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            p, q, z = Split<axis=-1, num_outputs=3>(g)
            m = Concat<axis=1>(q, p)
            y = Gemm<transB=1>(m, w2, b2)
        }""",
        w1=weight(r, 7, 6), b1=vector(r, 7), gate=gate(r, 7, (1, 4)), w2=weight(r, 3, 6), b2=vector(r, 3),
    )  # fmt: skip


@case(equality="indices in a table of two dimensions make two axes of one")
def gather_with_a_table_of_indices(r):
    text = "p = Gather<axis=1>(g, order)\n q = ReduceSum<keepdims=0>(p, axes)\n m = Tanh(q)"
    return dense(r, text, width=3, order=np.array([[0, 1, 2], [4, 4, 7]]), axes=[1])


@case(params=DENSE_LIVE)
def transpose_without_permutation(r):
    return dense(r, "a = Transpose(g)\n b = Relu(a)\n m = Transpose(b)")


@case(params=DENSE_LIVE)
def slices_with_open_ends_and_small_integers(r):
    text = "m = Slice(g, start, end, axis)"
    return dense(
        r, text, start=np.array([-1000], np.int32), end=np.array([2147483647], np.int32), axis=np.array([-1], np.int32)
    )  # fmt: skip


@case(equality="reshape with allowzero: a zero in the shape means zero")
def reshape_that_allows_zero(r):
    return dense(r, "a = Reshape<allowzero=1>(g, s)\n m = Reshape(a, back)", s=[-1, 4, 2], back=[-1, 8])


@case(params=DENSE_LIVE)
def unsqueeze_and_squeeze_at_negative_axes(r):
    return dense(r, "a = Unsqueeze(g, ax)\n b = Relu(a)\n m = Squeeze(b, ax)", ax=[-2])


@case(params=DENSE_LIVE)
def flatten_that_merges_nothing(r):
    return dense(r, "m = Flatten<axis=-1>(g)")


@case(params=DENSE_LIVE)
def reduction_over_no_axes(r):
    return dense(r, "m = ReduceSum<noop_with_empty_axes=1>(g, axes)", axes=np.zeros(0, np.int64))


@case(equality="a padded convolution over one tensor that two gates have cut differently")
def one_stream_under_two_gates_into_padded_convs(r):
    return model(
        """(float[N,3,H,W] x) => (float[N,4,H,W] y) {
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            s = Sigmoid(h)
            g1 = Mul(s, z1)
            g2 = Mul(s, z2)
            o1 = Sub(g1, half)
            y1 = Conv<pads=[1,1,1,1]>(o1, w2)
            y2 = Conv<pads=[1,1,1,1]>(g2, w3)
            y = Add(y1, y2)
        }""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), z1=channels(gate(r, 8)), z2=channels(gate(r, 8, (1, 4, 7))),
        half=0.5,
        w2=weight(r, 4, 8, 3, 3), w3=weight(r, 4, 8, 3, 3),
    )  # fmt: skip


@case(equality="the same constant channels serve a padded reader, a sum and an output layer")
def constants_read_by_a_padded_conv_and_a_residual_sum(r):
    return model(
        """(float[N,3,H,W] x) => (float[N,4,H,W] y) {
            h = Conv<pads=[1,1,1,1]>(x, w1, b1)
            g = Mul(h, gate)
            s = Sigmoid(g)
            c = Conv<pads=[1,1,1,1]>(s, w2, b2)
            t = Add(s, c)
            u = Tanh(t)
            y = Conv<pads=[1,1,1,1]>(u, w3, b3)
        }""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=channels(gate(r, 8)), w2=weight(r, 8, 8, 3, 3), b2=vector(r, 8),
        w3=weight(r, 4, 8, 3, 3), b3=vector(r, 4),
    )  # fmt: skip


@case(equality="constants of exactly opposite value: their sum is zero, neither is")
def opposite_constants_into_a_padded_conv(r):
    offsets = np.array([0.5, 1, -1, 0.2, -1, 0.1, 1, 2], np.float32)
    return image(r, "m = Add(g, o)", o=channels(offsets))


@case(equality="integer products know no fractions")
def integer_layers(r):
    return model(
        """(float[N,6] x) => (float[N,3] y) {
            i = Cast<to=6>(x)
            h = MatMul(i, w1)
            g = Mul(h, gate)
            p = Add(g, offset)
            q = MatMul(p, w2)
            y = Cast<to=1>(q)
        }""",
        w1=r.integers(-3, 4, (6, 8)).astype(np.int32), gate=(gate(r, 8) > 0).astype(np.int32),
        offset=r.integers(-3, 4, 8).astype(np.int32), w2=r.integers(-3, 4, (8, 3)).astype(np.int32),
    )  # fmt: skip


@case(equality="a window of one pixel, many strides: pools and convolutions that skip pixels")
def strides_larger_than_the_window(r):
    text = "s = Sigmoid(g)\n m = MaxPool<kernel_shape=[1,1], strides=[2,2]>(s)"
    return image(r, text, kernel=1, pad=0, attributes="strides=[2,2]")


@case(equality="padding wider than the kernel: whole windows lie outside the image")
def conv_of_constants_with_padding_wider_than_its_kernel(r):
    return image(r, "m = Sigmoid(g)", kernel=1, pad=2)


@case(params=5 * 28 + 5 * 6 * 9 + 4 * 6 + 6 * 27 + 3)
def autoencoder_of_images(r):
    return model(
        """(float[N,3,8,8] x) => (float[N,3,8,8] y) {
            c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w1, b1)
            a = Relu(c)
            g = Mul(a, gate)
            t = ConvTranspose<pads=[1,1,1,1], strides=[2,2], output_padding=[1,1]>(g, w2)
            n = BatchNormalization(t, bn_s, bn_b, bn_m, bn_v)
            b = Relu(n)
            y = Conv<pads=[1,1,1,1]>(b, w3, b3)
        }""",
        w1=weight(r, 8, 3, 3, 3), b1=vector(r, 8), gate=channels(gate(r, 8)), w2=weight(r, 8, 6, 3, 3),
        w3=weight(r, 3, 6, 3, 3), b3=vector(r, 3), **batch_norm(r, 6, "bn"),
    )  # fmt: skip


@case(nothing="the closed units feed themselves back through a sum over the features before the gate")
def sum_over_the_features_before_the_gate(r):
    text = "t = ReduceSum<keepdims=1>(h, axes)\n m = Mul(h, t)"
    return dense(r, text, closed=(), axes=[1])


@case(equality="queries, keys and values of a cached attention are outputs")
def fused_attention_with_a_cache(r):
    return model(
        """(float[N,S,8] x, float[N,4,P,4] pk, float[N,4,P,4] pv)
            => (float[N,S,8] y, float[N,4,Q,4] nk, float[N,4,Q,4] nv) {
            q = MatMul(x, wq)
            k = MatMul(x, wk)
            v = MatMul(x, wv)
            c, nk, nv = Attention<q_num_heads=4, kv_num_heads=4, is_causal=1>(q, k, v, "", pk, pv)
            m = Mul(c, gate)
            y = MatMul(m, wo)
        }""",
        opset=23, wq=weight(r, 8, 16), wk=weight(r, 8, 16), wv=weight(r, 8, 16), wo=weight(r, 16, 8),
        gate=np.repeat(gate(r, 4, (1, 2)), 4),
    )  # fmt: skip


@case(equality="a mask and a soft cap inside the fused attention")
def fused_attention_with_a_mask(r):
    return model(
        """(float[N,5,8] x) => (float[N,5,8] y) {
            q = MatMul(x, wq)
            k = MatMul(x, wk)
            v = MatMul(x, wv)
            c = Attention<q_num_heads=4, kv_num_heads=4, scale=0.3, softcap=5.0>(q, k, v, mask)
            m = Mul(c, gate)
            y = MatMul(m, wo)
        }""",
        opset=23, wq=weight(r, 8, 16), wk=weight(r, 8, 16), wv=weight(r, 8, 16), wo=weight(r, 16, 8),
        mask=weight(r, 4, 5, 5), gate=np.repeat(gate(r, 4, (1, 2)), 4),
    )  # fmt: skip


def behind_zero(r, middle, **weights):
    """Units u > 1, each reading one positive feature e > 2; MIDDLE maps u to m; m * gate is an output."""
    return model(
        f"""(float[N,6] x) => (float[N,8] y) {{
            h = MatMul(x, w1)
            p = Exp(h)
            e = Add(p, two)
            u = MatMul(e, w2)
            {middle}
            y = Mul(m, gate)
        }}""",
        w1=weight(r, 6, 8), w2=np.diag(r.uniform(0.5, 1, 8)).astype(np.float32), gate=gate(r, 8),
        two=2.0, **weights,
    )  # fmt: skip


@case(equality="what a closed gate hides must stay finite: 0 times 1 / 0 would not be 0")
def reciprocal_behind_a_closed_gate(r):
    return behind_zero(r, "m = Reciprocal(u)")


@case(equality="what a closed gate hides must stay finite: 0 times the logarithm of 0 would not be 0")
def logarithm_behind_a_closed_gate(r):
    return behind_zero(r, "m = Log(u)")


@case(equality="what a closed gate hides must stay finite: 0 times the root of a negative number would not be 0")
def root_behind_a_closed_gate(r):
    return behind_zero(r, "v = Sub(u, half)\n m = Sqrt(v)", half=0.5)


@case(equality="what a closed gate hides must stay finite: a quotient whose denominator nobody seems to need")
def quotient_behind_a_closed_gate(r):
    return behind_zero(r, "m = Div(p, u)")


@case(equality="whole numbers divide to whole numbers: 7 / 2 = 3")
def integer_division_of_constants(r):
    return model(
        """(float[N,6] x) => (float[N,3] y) {
            i = Cast<to=6>(x)
            h = MatMul(i, w1)
            g = Mul(h, gate)
            p = Add(g, seven)
            q = Div(p, two)
            s = MatMul(q, w2)
            y = Cast<to=1>(s)
        }""",
        w1=r.integers(-3, 4, (6, 8)).astype(np.int32), gate=(gate(r, 8) > 0).astype(np.int32), seven=np.int32(7),
        two=np.int32(2), w2=r.integers(-3, 4, (8, 3)).astype(np.int32),
    )  # fmt: skip


@case(equality="whole numbers divide to whole numbers, in an offset that becomes a constant branch")
def integer_division_in_a_closed_branch(r):
    return model(
        """(float[N,6] x) => (float[N,8] y) {
            i = Cast<to=6>(x)
            h = MatMul(i, w1)
            g = Mul(h, gate)
            p = Sub(g, seven)
            q = Div(p, two)
            k = MatMul(i, w2)
            s = Add(k, q)
            y = Cast<to=1>(s)
        }""",
        w1=r.integers(-3, 4, (6, 8)).astype(np.int32), gate=np.zeros(8, np.int32), seven=np.int32(7), two=np.int32(2),
        w2=r.integers(-3, 4, (6, 8)).astype(np.int32),
    )  # fmt: skip


@case(equality="eight rows and eight columns: factors of the rows are none of the columns")
def row_factors_behind_a_product_with_a_vector(r):
    return model(
        """(float[8,6] x) => (float[8] y) {
            h = MatMul(x, w1)
            a = Relu(h)
            p = MatMul(a, w2)
            s = Mul(p, z)
            y = Tanh(s)
        }""",
        w1=weight(r, 6, 8), w2=vector(r, 8), z=gate(r, 8, ()),
    )  # fmt: skip


@case(equality="eight rows and eight columns: factors of the rows are none of the columns")
def row_factors_of_a_square_product(r):
    return model(
        """(float[8,6] x) => (float[8,8] y) {
            h = MatMul(x, w1)
            s = Mul(h, z)
            a = Relu(s)
            t = Mul(a, z)
            p = MatMul(t, w2)
            y = Tanh(p)
        }""",
        w1=weight(r, 6, 8), w2=weight(r, 8, 8), z=gate(r, 8, (2, 5)).reshape(8, 1),
    )  # fmt: skip


@case(equality="weights on the left: factors of the columns are the input's")
def column_factors_behind_a_left_product(r):
    return model(
        """(float[8,8] x) => (float[8,8] y) {
            h = MatMul(w1, x)
            s = Mul(h, z)
            a = Relu(s)
            p = MatMul(w2, a)
            t = Mul(p, z)
            y = Tanh(t)
        }""",
        w1=weight(r, 8, 8), w2=weight(r, 8, 8), z=gate(r, 8, (2, 5)),
    )  # fmt: skip


@case(equality="negative factors do not pass a ReLU")
def negative_factors_around_relu(r):
    return dense(r, "n = Mul(g, z)\n a = Relu(n)\n b = Mul(a, z2)\n m = LeakyRelu(b)", z=vector(r, 8), z2=vector(r, 8))


@case(equality="factors pass a pool over pixels, not one over channels")
def factors_around_pools(r):
    text = """a = MaxPool<kernel_shape=[2,2]>(g)
            b = Mul(a, z)
            c = AveragePool<kernel_shape=[2,2], pads=[1,1,0,0]>(b)
            d = Mul(c, z2)
            m = Mul(d, z2)"""
    return image(r, text, z=channels(vector(r, 8)), z2=channels(gate(r, 8)))


@case(
    equality="the rotary operator on merged heads", no_double="RotaryEmbedding takes no float64",
    integers={"position": (0, 10)},
)  # fmt: skip
def rotary_embedding_of_rank_3(r):
    cos, sin = (f(np.arange(10)[:, None] / np.array([1.0, 10.0])).astype(np.float32) for f in (np.cos, np.sin))
    return model(
        """(float[N,S,8] x, int64[N,S] position) => (float[N,S,8] y) {
            q0 = MatMul(x, wq)
            k0 = MatMul(x, wk)
            q = RotaryEmbedding<num_heads=4>(q0, cos, sin, position)
            k = RotaryEmbedding<num_heads=4>(k0, cos, sin, position)
            v = MatMul(x, wv)
            c = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v)
            m = Mul(c, gate)
            y = MatMul(m, wo)
        }""",
        opset=23, wq=weight(r, 8, 16), wk=weight(r, 8, 16), wv=weight(r, 8, 16), wo=weight(r, 16, 8), cos=cos, sin=sin,
        gate=np.repeat(gate(r, 4, (1, 2)), 4),
    )  # fmt: skip


@case(equality="a constant times its own sigmoid: nothing of either is left", constant_output=True)
def constant_units_times_their_own_sigmoid(r):
    return model(
        """(float[N,S,6] x) => (float[N,S,3] y) {
            h = MatMul(x, w1)
            g = Mul(h, gate)
            o = Add(g, b1)
            t = Add(o, o)
            s = Sigmoid(t)
            m = Mul(t, s)
            y = MatMul(m, w2)
        }""",
        w1=weight(r, 6, 8), gate=np.zeros(8, np.float32), b1=vector(r, 8), w2=weight(r, 8, 3),
    )  # fmt: skip


@case(equality="one value is listed as an output twice, and a copy of it once more")
def output_that_is_listed_twice(r):
    made = dense(r, "m = Sigmoid(g)")
    made.graph.node.append(onnx.helper.make_node("Identity", ["y"], ["z"]))
    z = onnx.ValueInfoProto()
    z.CopyFrom(made.graph.output[0])
    z.name = "z"
    made.graph.output.extend([made.graph.output[0], z, z])
    return made


@case(params=DENSE_LIVE)
def split_with_an_empty_part_that_is_read(r):
    return dense(r, "nothing, all = Split<axis=1>(g, sizes)\n m = Concat<axis=1>(all, nothing)", sizes=[0, 8])


@case(params=5 * 6 + 5 + 6 * 4 + 2 * 4 * 3)
def split_behind_a_concat_of_which_one_part_goes(r):
    """The Split is left with the other part of the Concat as its input, which itself loses nothing."""
    return model(
        """(float[N,6] x) => (float[N,3] y, float[N,3] z) {
            a = MatMul(x, w1)
            b = MatMul(x, w2)
            g = Mul(b, closed)
            c = Concat<axis=1>(g, a)
            p, q = Split<axis=1>(c, sizes)
            y = MatMul(p, w3)
            z = MatMul(q, w4)
        }""",
        w1=weight(r, 6, 4), w2=weight(r, 6, 8), closed=np.zeros(8, np.float32), sizes=[8, 4], w3=weight(r, 8, 3),
        w4=weight(r, 4, 3),
    )  # fmt: skip
