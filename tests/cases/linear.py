"""Gemm and MatMul in every orientation, with every attribute, shared and tied weights, several readers."""

from __future__ import annotations

import numpy as np

from cases.sandwich import DENSE_ALL, DENSE_LIVE, dense
from cases.table import case, gate, model, vector, weight


@case(params=DENSE_LIVE)
def gemm_gate_relu_gemm(r):
    return dense(r, "m = Relu(g)")


@case(params=DENSE_LIVE)  # sigmoid(0) = 1/2 goes into the bias
def gemm_gate_sigmoid_gemm(r):
    return dense(r, "m = Sigmoid(g)")


def gemms(r, first, second, shapes, closed=(1, 4, 6), inputs="float[N,6] x", middle="m = Sigmoid(g)", c2=None, **more):
    """x -> Gemm -> gate -> middle -> Gemm with free attributes and weight shapes."""
    w1, w2 = shapes
    c = ", b2" if c2 is not None else ""
    return model(
        f"""({inputs}) => (float[N,3] y) {{
            h = Gemm<{first}>(x, w1, b1)
            g = Mul(h, gate)
            {middle}
            y = Gemm<{second}>(m, w2{c})
        }}""",
        w1=weight(r, *w1), b1=vector(r, 8), gate=gate(r, 8, closed), w2=weight(r, *w2),
        **({} if c2 is None else {"b2": c2}), **more,
    )  # fmt: skip


@case(params=DENSE_LIVE)
def gemm_without_transposition(r):
    return gemms(r, "transB=0", "transB=0", ((6, 8), (8, 3)), c2=vector(r, 3))


@case(params=DENSE_LIVE)
def gemm_with_alpha_and_beta(r):
    return gemms(r, "alpha=0.5, beta=0.25", "transB=1, alpha=1.5, beta=2.0", ((6, 8), (3, 8)), c2=vector(r, 3))


@case(params=DENSE_LIVE)  # the constants need a bias that is not there
def gemm_of_constants_without_bias(r):
    return gemms(r, "transB=1", "transB=1, alpha=0.5", ((8, 6), (3, 8)))


@case(params=DENSE_LIVE)  # beta = 0: the bias given is not added
def gemm_of_constants_with_beta_zero(r):
    return gemms(r, "transB=1", "transB=1, beta=0.0", ((8, 6), (3, 8)), c2=vector(r, 3))


@case(params=DENSE_LIVE)
def gemm_of_constants_with_scalar_bias(r):
    return gemms(r, "transB=1", "transB=1, beta=0.5", ((8, 6), (3, 8)), c2=np.float32(0.7))


@case(params=DENSE_LIVE)
def gemm_of_constants_with_bias_of_one_element(r):
    return gemms(r, "transB=1", "transB=1", ((8, 6), (3, 8)), c2=vector(r, 1))


@case(params=5 * 6 + 5 + 3 * 5 + 2 * 3)
def gemm_of_constants_with_bias_matrix(r):
    return model(
        """(float[2,6] x) => (float[2,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            m = Sigmoid(g)
            y = Gemm<transB=1>(m, w2, b2)
        }""",
        w1=weight(r, 8, 6), b1=weight(r, 2, 8)[:1], gate=gate(r, 8), w2=weight(r, 3, 8), b2=weight(r, 2, 3),
    )  # fmt: skip


@case(params=5 * 6 + 5 * 3)  # both operands of the second Gemm run along the gated rows
def gemm_with_transposed_activation(r):
    return model(
        """(float[N,6] x) => (float[N,3] y) {
            t = Transpose<perm=[1,0]>(x)
            h = MatMul(w1, t)
            g = Mul(h, gate)
            y = Gemm<transA=1>(g, w2)
        }""",
        w1=weight(r, 8, 6), gate=gate(r, 8).reshape(8, 1), w2=weight(r, 8, 3),
    )  # fmt: skip


@case(params=5 * 6 + 3 * 5 + 3)
def weights_on_the_left_of_matmul(r):
    return model(
        """(float[6,S] x) => (float[3,S] y) {
            h = MatMul(w1, x)
            g = Mul(h, gate)
            s = Sigmoid(g)
            p = MatMul(w2, s)
            y = Add(p, b2)
        }""",
        w1=weight(r, 8, 6), gate=gate(r, 8).reshape(8, 1), w2=weight(r, 3, 8), b2=vector(r, 3).reshape(3, 1),
    )  # fmt: skip


@case(params=DENSE_LIVE)
def matmul_and_add_over_sequences(r):
    return model(
        """(float[N,S,6] x) => (float[N,S,3] y) {
            h0 = MatMul(x, w1)
            h = Add(b1, h0)
            g = Mul(h, gate)
            m = Sigmoid(g)
            y0 = MatMul(m, w2)
            y = Add(y0, b2)
        }""",
        w1=weight(r, 6, 8), b1=vector(r, 8), gate=gate(r, 8), w2=weight(r, 8, 3), b2=vector(r, 3),
    )  # fmt: skip


@case(params=5 * 6 + 5 + 5 * 3 + 3)  # sigmoid(0) times the columns needs an Add that is not there
def matmul_of_constants_without_add(r):
    return model(
        """(float[N,S,6] x) => (float[N,S,3] y) {
            h0 = MatMul(x, w1)
            h = Add(b1, h0)
            g = Mul(h, gate)
            m = Sigmoid(g)
            y = MatMul(m, w2)
        }""",
        w1=weight(r, 6, 8), b1=vector(r, 8), gate=gate(r, 8), w2=weight(r, 8, 3),
    )  # fmt: skip


@case(params=2 * 5 * 6)
def product_of_two_activations_over_the_gated_axis(r):
    return model(
        """(float[N,S,6] x) => (float[N,S,S] y) {
            q0 = MatMul(x, wq)
            q = Mul(q0, gate)
            k = MatMul(x, wk)
            kt = Transpose<perm=[0,2,1]>(k)
            y = MatMul(q, kt)
        }""",
        wq=weight(r, 6, 8), wk=weight(r, 6, 8), gate=gate(r, 8),
    )  # fmt: skip


@case(params=6 * 5 + 2 * 5 * 3)
def matmul_with_one_weight_per_batch(r):
    return model(
        """(float[N,2,S,6] x) => (float[N,2,S,3] y) {
            h = MatMul(x, w1)
            g = Mul(h, gate)
            a = Relu(g)
            y = MatMul(a, w2)
        }""",
        w1=weight(r, 6, 8), gate=gate(r, 8), w2=weight(r, 2, 8, 3),
    )  # fmt: skip


@case(params=2 * 6 * 5 + 2 * 5 * 3)
def matmul_per_expert_with_the_same_gate(r):
    return model(
        """(float[2,S,6] x) => (float[2,S,3] y) {
            h = MatMul(x, w1)
            g = Mul(h, gate)
            a = Relu(g)
            y = MatMul(a, w2)
        }""",
        w1=weight(r, 2, 6, 8), gate=gate(r, 8), w2=weight(r, 2, 8, 3),
    )  # fmt: skip


@case(equality="each expert closes other units, so the common ones alone could go")
def matmul_per_expert_with_a_gate_each(r):
    z = np.stack([gate(r, 8, (1, 4)), gate(r, 8, (4, 5))]).reshape(2, 1, 8)
    return model(
        """(float[2,S,6] x) => (float[2,S,3] y) {
            h = MatMul(x, w1)
            g = Mul(h, gate)
            a = Sigmoid(g)
            y = MatMul(a, w2)
        }""",
        w1=weight(r, 2, 6, 8), gate=z, w2=weight(r, 2, 8, 3),
    )  # fmt: skip


@case(equality="one expert is closed as a whole")
def matmul_with_a_closed_batch_index(r):
    return model(
        """(float[N,4,S,6] x) => (float[N,S,3] y) {
            h = MatMul(x, w1)
            g = Mul(h, gate)
            y0 = MatMul(g, w2)
            y = ReduceSum<keepdims=0>(y0, axes)
        }""",
        w1=weight(r, 4, 6, 8), gate=gate(r, 4, (1, 3)).reshape(4, 1, 1), w2=weight(r, 4, 8, 3), axes=[1],
    )  # fmt: skip


@case(params=5 * 6 + 5 + 5)
def matmul_with_a_vector(r):
    return model(
        """(float[N,6] x) => (float[N] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            y = MatMul(g, w2)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8), w2=vector(r, 8),
    )  # fmt: skip


@case(equality="the input is the caller's: its closed features may be gathered away where that pays")
def gate_on_the_graph_input(r):
    return model(
        """(float[N,8] x) => (float[N,3] y) {
            g = Mul(x, gate)
            y = Gemm<transB=1>(g, w1, b1)
        }""",
        gate=gate(r, 8), w1=weight(r, 3, 8), b1=vector(r, 3),
    )  # fmt: skip


@case(params=4 * 6 + 4 + 5 * 4 + 5 + 3 * 5 + 3)  # gates on the inputs of layers 2 and 3, as LeNet-300-100 has them
def gates_on_the_inputs_of_hidden_layers(r):
    return model(
        """(float[N,6] x) => (float[N,3] y) {
            h1 = Gemm<transB=1>(x, w1, b1)
            a1 = Relu(h1)
            g1 = Mul(a1, z1)
            h2 = Gemm<transB=1>(g1, w2, b2)
            a2 = Relu(h2)
            g2 = Mul(a2, z2)
            y = Gemm<transB=1>(g2, w3, b3)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), z1=gate(r, 8, (0, 2, 3, 7)), w2=weight(r, 7, 8), b2=vector(r, 7),
        z2=gate(r, 7, (1, 6)), w3=weight(r, 3, 7), b3=vector(r, 3),
    )  # fmt: skip


@case(nothing="the hidden layer is itself an output of the graph, zeros and all")
def hidden_layer_is_also_an_output(r):
    return model(
        """(float[N,6] x) => (float[N,8] g, float[N,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            a = Sigmoid(h)
            g = Mul(a, gate)
            y = Gemm<transB=1>(g, w2, b2)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8), w2=weight(r, 3, 8), b2=vector(r, 3),
    )  # fmt: skip


@case(params=8 * 6 + 8 + 8 + 3 * 8 + 3)
def ungated_hidden_layer_is_also_an_output(r):
    return model(
        """(float[N,6] x) => (float[N,8] h, float[N,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            a = Sigmoid(g)
            y = Gemm<transB=1>(a, w2, b2)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8), w2=weight(r, 3, 8), b2=vector(r, 3),
    )  # fmt: skip


@case(params=5 * 6)  # one copy of the sliced matrix serves both directions
def tied_autoencoder(r):
    return model(
        """(float[N,6] x) => (float[N,6] y) {
            h = MatMul(x, w)
            g = Mul(h, gate)
            y = Gemm<transB=1>(g, w)
        }""",
        w=weight(r, 6, 8), gate=np.where(gate(r, 8) > 0, 1, 0).astype(np.float32),
    )  # fmt: skip


@case(equality="two cuts of one matrix may be larger together than the matrix")
def one_matrix_read_by_two_layers_with_different_gates(r):
    return model(
        """(float[N,6] x, float[N,6] v) => (float[N,3] y) {
            h1 = MatMul(x, w)
            h2 = MatMul(v, w)
            g1 = Mul(h1, z1)
            g2 = Mul(h2, z2)
            y1 = MatMul(g1, u)
            y2 = MatMul(g2, u)
            y = Add(y1, y2)
        }""",
        w=weight(r, 6, 8), u=weight(r, 8, 3), z1=gate(r, 8), z2=gate(r, 8, (0, 1, 2)),
    )  # fmt: skip


@case(params=5 * 6 + 5 + 2 * (3 * 5 + 3))
def gate_that_reaches_two_readers(r):
    return model(
        """(float[N,6] x) => (float[N,3] y, float[N,3] z) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            a = Sigmoid(g)
            y = Gemm<transB=1>(a, w2, b2)
            z = Gemm<transB=1>(g, w3, b3)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8), w2=weight(r, 3, 8), b2=vector(r, 3),
        w3=weight(r, 3, 8), b3=vector(r, 3),
    )  # fmt: skip


@case(params=8 * 6 + 8 + 8 + 2 * (3 * 8 + 3))
def gate_before_one_of_two_readers(r):
    return model(
        """(float[N,6] x) => (float[N,3] y, float[N,3] z) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            y = Gemm<transB=1>(g, w2, b2)
            z = Gemm<transB=1>(h, w3, b3)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8), w2=weight(r, 3, 8), b2=vector(r, 3),
        w3=weight(r, 3, 8), b3=vector(r, 3),
    )  # fmt: skip


@case(params=6 * 6 + 6 + 2 * 6 + 2 * (3 * 6 + 3))  # closed for both readers: 2 and 3
def two_readers_with_different_gates(r):
    return model(
        """(float[N,6] x) => (float[N,3] y, float[N,3] z) {
            h = Gemm<transB=1>(x, w1, b1)
            g1 = Mul(h, z1)
            g2 = Mul(h, z2)
            a2 = Sigmoid(g2)
            y = Gemm<transB=1>(g1, w2, b2)
            z = Gemm<transB=1>(a2, w3, b3)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), z1=gate(r, 8, (1, 2, 3)), z2=gate(r, 8, (2, 3, 4)), w2=weight(r, 3, 8),
        b2=vector(r, 3), w3=weight(r, 3, 8), b3=vector(r, 3),
    )  # fmt: skip


@case(params=1 * 6 + 1 + 3 * 1 + 3, constant_output=True)
def whole_gemm_layer_closed(r):
    return dense(r, "m = Relu(g)", closed=tuple(range(8)))


@case(params=1 * 6 + 1 + 3 * 1 + 3, constant_output=True)
def whole_gemm_layer_closed_before_sigmoid(r):
    return dense(r, "m = Sigmoid(g)", closed=tuple(range(8)))


@case(params=5 * 6 + 5 + 3 * 5 + 3)  # unit 1 is closed, and 4 and 6 have no reader
def closed_units_and_unread_units(r):
    made = dense(r, "m = Relu(g)", closed=(1,))
    from onnx import numpy_helper

    for t in made.graph.initializer:
        if t.name == "w2":
            w = np.array(numpy_helper.to_array(t))
            w[:, [4, 6]] = 0
            t.CopyFrom(numpy_helper.from_array(w, "w2"))
    return made


@case(params=4 * 6 + 4 + 5 * 4 + 5 + 3 * 5 + 3)  # a hidden unit that only closed units read is unread
def deadness_travels_backwards_through_two_layers(r):
    w2 = weight(r, 8, 8)
    live = [0, 2, 3, 5, 7]
    for k in (1, 2, 4, 7):
        w2[live, k] = 0
    return model(
        """(float[N,6] x) => (float[N,3] y) {
            h1 = Gemm<transB=1>(x, w1, b1)
            a1 = Tanh(h1)
            h2 = Gemm<transB=1>(a1, w2, b2)
            g2 = Mul(h2, gate)
            y = Gemm<transB=1>(g2, w3, b3)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), w2=w2, b2=vector(r, 8), gate=gate(r, 8), w3=weight(r, 3, 8),
        b3=vector(r, 3),
    )  # fmt: skip


@case(params=DENSE_LIVE + 5)  # sigmoid(c) of a constant through a second affine step
def constants_through_two_activations_and_an_offset(r):
    return dense(r, "s = Sigmoid(g)\n t = Add(s, shift)\n m = Tanh(t)", shift=vector(r, 8))


@case(nothing="no gate is exactly zero")
def nothing_is_closed(r):
    return dense(r, "m = Relu(g)", closed=())


@case(params=DENSE_ALL)  # open gates fold into the layer before
def open_gates_fold_into_gemm(r):
    return dense(r, "m = Tanh(g)", closed=())


@case(params=DENSE_LIVE)
def identity_and_dropout_between(r):
    return dense(r, "i = Identity(g)\n d = Dropout(i)\n m = Identity(d)")
