"""Does a reader's need reach the layers beneath it? Each case has one more layer, whose weights go if need is lost."""

from __future__ import annotations

import numpy as np

from cases.table import case, channels, gate, model, vector, weight

REASON = "what counts is that the layers beneath are still read"


def deep_image(r, text, width=8, opset=21, closed=(1,), **weights):
    """conv, ReLU, conv, gate, TEXT from g to m, pointwise conv."""
    return model(
        f"""(float[N,3,H,W] x) => (float[N,4,HO,WO] y) {{
            c = Conv<pads=[1,1,1,1]>(x, w0)
            a = Relu(c)
            h = Conv<pads=[1,1,1,1]>(a, w1, b1)
            g = Mul(h, gate)
            {text}
            y = Conv(m, w2, b2)
        }}""",
        opset=opset, w0=weight(r, 6, 3, 3, 3), w1=weight(r, 8, 6, 3, 3), b1=vector(r, 8),
        gate=channels(gate(r, 8, closed)), w2=weight(r, 4, width, 1, 1), b2=vector(r, 4), **weights,
    )  # fmt: skip


def deep_dense(r, text, width=8, rows="", opset=23, **weights):
    """Gemm, ReLU, MatMul, gate, TEXT from g to m, MatMul."""
    return model(
        f"""(float[N,{rows}6] x) => (float[N,{rows}3] y) {{
            c = MatMul(x, w0)
            a = Relu(c)
            h0 = MatMul(a, w1)
            h = Add(h0, b1)
            g = Mul(h, gate)
            {text}
            y = MatMul(m, w2)
        }}""",
        opset=opset, w0=weight(r, 6, 7), w1=weight(r, 7, 8), b1=vector(r, 8), gate=gate(r, 8, (1,)),
        w2=weight(r, width, 3), **weights,
    )  # fmt: skip


@case(equality=REASON)
def layers_beneath_a_grouped_conv(r):
    return deep_image(r, "m = Conv<group=2, pads=[1,1,1,1]>(g, w3)", width=6, w3=weight(r, 6, 4, 3, 3))


@case(equality=REASON)
def layers_beneath_a_group_norm(r):
    text = "m = GroupNormalization<num_groups=2, epsilon=0.01>(g, s, b)"
    return deep_image(r, text, closed=(0, 1, 2, 3), s=vector(r, 8), b=vector(r, 8))


@case(equality=REASON)
def layers_beneath_a_depth_to_space(r):
    return deep_image(r, "m = DepthToSpace<blocksize=2>(g)", width=2, closed=(0, 2, 4, 6))


@case(equality=REASON)
def layers_beneath_a_gather_of_one_feature(r):
    text = "p = Gather<axis=1>(g, k)\n q = Unsqueeze(p, last)\n m = Tanh(q)"
    return deep_dense(r, text, width=1, k=np.int64(2), last=[1])


@case(equality=REASON)
def layers_beneath_a_split_into_single_features(r):
    text = "p, q, s = Split<axis=1>(g, sizes)\n t = Mul(p, s)\n u = Relu(q)\n m = Add(t, u)"
    return deep_dense(r, text, width=6, sizes=[1, 6, 1])


@case(equality=REASON)
def layers_beneath_a_fused_attention(r):
    text = "c1 = Attention<q_num_heads=4, kv_num_heads=4>(g, h, h)\n m = Mul(c1, z)"
    return deep_dense(r, text, rows="S,", z=gate(r, 8, (2, 3)))


@case(equality=REASON)
def layers_beneath_a_layer_norm(r):
    return deep_dense(r, "m = LayerNormalization(g, s, b)", s=vector(r, 8), b=vector(r, 8))


@case(equality=REASON)
def layers_beneath_squared_deviations(r):
    text = "u = ReduceMean(x, last)\n d = Sub(g, u)\n d2 = Mul(d, d)\n m = ReduceMean(d2, last)"
    return deep_dense(r, text, width=1, last=[1])


@case(equality=REASON)
def layers_beneath_a_recurrence(r):
    return model(
        """(float[S,N,6] x) => (float[S,1,N,5] o) {
            c = MatMul(x, w0)
            a = Relu(c)
            h = MatMul(a, w1)
            g = Mul(h, gate)
            o = GRU<hidden_size=5>(g, w, rec, b)
        }""",
        w0=weight(r, 6, 7), w1=weight(r, 7, 8), gate=gate(r, 8), w=weight(r, 1, 15, 8), rec=weight(r, 1, 15, 5),
        b=weight(r, 1, 30),
    )  # fmt: skip


@case(equality=REASON, no_double="QuantizeLinear takes no float64")
def layers_beneath_a_sum_of_integers(r):
    text = "q = QuantizeLinear(g, s, z)\n p = MatMulInteger(q, w3, z)\n f = Cast<to=1>(p)\n m = Mul(f, s)"
    w3 = np.rint(weight(r, 8, 5) * 64).astype(np.int8)
    return deep_dense(r, text, width=5, s=np.float32(1 / 16), z=np.int8(3), w3=w3)
