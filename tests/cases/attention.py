"""Attention with heads, spelled out or fused; Softmax, Einsum, embeddings, rotary embeddings."""

from __future__ import annotations

import numpy as np
import onnx

from cases.sandwich import dense
from cases.table import case, gate, model, vector, weight

HEADS, SIZE, WIDTH = 4, 4, 8  # query heads, features per head, features of the stream


def split(name: str, heads: int = HEADS) -> str:
    """[N, S, heads * 4] -> [N, heads, S, 4]."""
    return f"{name}_r = Reshape({name}, to_{heads})\n {name}_h = Transpose<perm=[0,2,1,3]>({name}_r)\n "


def attention(
    r,
    q="q = Identity(q0)",
    k="k = Identity(k0)",
    v="v = Identity(v0)",
    o="m = Identity(merged)",
    kv_heads=HEADS,
    repeat="",
    mask="masked = Identity(scores)",
    heads_gate="ctx_g = Identity(ctx)",
    opset=20,
    kv_inputs=("k_h", "v_h"),
    **weights,
):
    """Multi-head attention over x [N, S, 8]; the texts gate the queries, keys, values, heads or the merged heads."""
    n, nkv = HEADS * SIZE, kv_heads * SIZE
    return model(
        f"""(float[N,S,8] x) => (float[N,S,8] y) {{
            q00 = MatMul(x, wq)
            q0 = Add(q00, bq)
            {q}
            k00 = MatMul(x, wk)
            k0 = Add(k00, bk)
            {k}
            v00 = MatMul(x, wv)
            v0 = Add(v00, bv)
            {v}
            {split('q')} {split('k', kv_heads)} {split('v', kv_heads)}
            {repeat}
            kt = Transpose<perm=[0,1,3,2]>({kv_inputs[0]})
            dots = MatMul(q_h, kt)
            scores = Mul(dots, scale)
            {mask}
            p = Softmax<axis=-1>(masked)
            ctx = MatMul(p, {kv_inputs[1]})
            {heads_gate}
            back = Transpose<perm=[0,2,1,3]>(ctx_g)
            merged = Reshape(back, flat)
            {o}
            y0 = MatMul(m, wo)
            y = Add(y0, bo)
        }}""",
        opset=opset, wq=weight(r, WIDTH, n), bq=vector(r, n), wk=weight(r, WIDTH, nkv), bk=vector(r, nkv),
        wv=weight(r, WIDTH, nkv), bv=vector(r, nkv), wo=weight(r, n, WIDTH), bo=vector(r, WIDTH), scale=0.5,
        flat=[0, 0, n], **{f"to_{h}": [0, 0, h, SIZE] for h in {HEADS, kv_heads}}, **weights,
    )  # fmt: skip


def attention_params(qk: int, v: int, kv: int | None = None) -> int:
    """Weights of the layer with qk query features, v value features (kv: key features where there are fewer)."""
    return 9 * qk + 9 * (qk if kv is None else kv) + 9 * v + 8 * v + 8


def heads_closed(r, *closed):
    """Gate over [heads * 4] with whole heads closed."""
    z = np.repeat(r.uniform(0.3, 1, HEADS).astype(np.float32), SIZE)
    for h in closed:
        z[h * SIZE : (h + 1) * SIZE] = 0
    return z


@case(params=attention_params(8, 8))  # queries, keys and values of two heads go
def attention_with_closed_heads_before_the_projection(r):
    return attention(r, o="m = Mul(merged, gate)", gate=heads_closed(r, 1, 2))


@case(params=attention_params(8, 8))
def attention_with_a_gate_per_head(r):
    return attention(r, heads_gate="ctx_g = Mul(ctx, gate)", gate=gate(r, 4, (0, 3)).reshape(4, 1, 1))


@case(params=attention_params(4, 4))
def attention_with_three_closed_heads(r):
    return attention(r, heads_gate="ctx_g = Mul(ctx, gate)", gate=gate(r, 4, (0, 1, 3)).reshape(4, 1, 1))


@case(equality="all heads are closed: the output is the projection's bias", constant_output=True)
def attention_with_all_heads_closed(r):
    return attention(r, heads_gate="ctx_g = Mul(ctx, gate)", gate=gate(r, 4, (0, 1, 2, 3)).reshape(4, 1, 1))


@case(params=attention_params(16, 8))  # features 0 and 3 of every head
def attention_with_the_same_value_features_closed_in_every_head(r):
    return attention(r, v="v = Mul(v0, gate)", gate=np.tile(gate(r, 4, (0, 3)), 4))


@case(params=attention_params(16, 12))  # the maximum over the heads is 3 of 4
def attention_with_uneven_value_features(r):
    return attention(r, v="v = Mul(v0, gate)", gate=gate(r, 16, (0, 5, 6, 8, 11, 14)))


@case(params=attention_params(8, 16))
def attention_with_the_same_query_features_closed_in_every_head(r):
    return attention(r, q="q = Mul(q0, gate)", gate=np.tile(gate(r, 4, (1, 2)), 4))


@case(params=attention_params(12, 16))
def attention_with_uneven_key_features(r):
    return attention(r, k="k = Mul(k0, gate)", gate=gate(r, 16, (1, 5, 6, 9, 12, 15)))


@case(params=attention_params(12, 12))
def attention_with_uneven_features_of_queries_keys_and_values(r):
    """Some of the pairs are closed on the query's side, some on the key's, some outputs behind the values."""
    return attention(
        r, q="q = Mul(q0, zq)", k="k = Mul(k0, zk)", v="v = Mul(v0, zv)", o="m = Mul(merged, zo)",
        zq=gate(r, 16, (1, 4)), zk=gate(r, 16, (4, 8, 14)), zv=gate(r, 16, (0, 5)), zo=gate(r, 16, (9, 15)),
    )  # fmt: skip


@case(params=attention_params(12, 12, 6) - 9 * 6)  # two key and value heads, each used by two query heads
def grouped_query_attention_with_uneven_features(r):
    repeat = "kk = Gather<axis=1>(k_h, twice)\n vv = Gather<axis=1>(v_h, twice)"
    return attention(
        r, k="k = Mul(k0, zk)", o="m = Mul(merged, zo)", kv_heads=2, repeat=repeat, kv_inputs=("kk", "vv"),
        twice=[0, 0, 1, 1], zk=gate(r, 8, (1, 6)), zo=gate(r, 16, (2, 6, 8, 12, 13)),
    )  # fmt: skip


@case(equality="one feature of the values is added to before the projection: what is closed there still counts")
def attention_with_an_offset_behind_uneven_values(r):
    text = "m0 = Mul(merged, zo)\n m = Add(m0, off)"
    return attention(r, o=text, zo=gate(r, 16, (2, 5, 8, 15)), off=vector(r, 16))


@case(equality="the same features are read by an output of their own")
def attention_whose_uneven_values_are_an_output(r):
    made = attention(r, v="v = Mul(v0, gate)", gate=gate(r, 16, (0, 5, 6, 8, 11, 14)))
    made.graph.output.append(onnx.helper.make_tensor_value_info("v", onnx.TensorProto.FLOAT, ["N", "S", 16]))
    return made


@case(equality="a closed query head attends evenly: it still averages its values")
def attention_with_closed_query_heads(r):
    return attention(r, q="q = Mul(q0, gate)", gate=heads_closed(r, 1, 2))


@case(params=attention_params(8, 8))
def attention_with_closed_value_heads(r):
    return attention(r, v="v = Mul(v0, gate)", gate=heads_closed(r, 0, 3))


@case(params=attention_params(8, 8) + 16)  # and the mask
def attention_with_closed_heads_and_a_causal_mask(r):
    mask = "masked = Add(scores, causal)"
    causal = np.triu(np.full((4, 4), -1e9, np.float32), 1)
    made = attention(r, mask=mask, o="m = Mul(merged, gate)", gate=heads_closed(r, 1, 2), causal=causal)
    for value in (made.graph.input[0], made.graph.output[0]):
        value.type.tensor_type.shape.dim[1].dim_value = 4
    return made


@case(equality="the mask closes a token for everyone: its keys and values are unread")
def attention_with_a_token_masked_by_minus_infinity(r):
    mask = "masked = Add(scores, never)"
    never = np.array([0, -np.inf, 0, 0], np.float32)
    made = attention(r, mask=mask, o="m = Mul(merged, gate)", gate=heads_closed(r, 1), never=never)
    for value in (made.graph.input[0], made.graph.output[0]):
        value.type.tensor_type.shape.dim[1].dim_value = 4
    return made


EXPAND = """k_u = Unsqueeze(k_h, two_)
            k_e = Expand(k_u, five)
            k_x = Reshape(k_e, four)
            v_u = Unsqueeze(v_h, two_)
            v_e = Expand(v_u, five)
            v_x = Reshape(v_e, four)"""
GROUPED = {"kv_heads": 2, "repeat": EXPAND, "kv_inputs": ("k_x", "v_x")}
GROUPED_WEIGHTS = {"two_": [2], "five": [1, 1, 2, 1, 1], "four": [0, 4, -1, 4]}


@case(params=attention_params(8, 8, kv=4) - 9 * 4)  # query heads 2 and 3 share key head 1
def grouped_query_attention_with_a_closed_group(r):
    return attention(r, o="m = Mul(merged, gate)", gate=heads_closed(r, 2, 3), **GROUPED, **GROUPED_WEIGHTS)


@case(equality="one query head of each group: 2 query heads over 2 key heads")
def grouped_query_attention_with_one_closed_head_in_each_group(r):
    return attention(r, o="m = Mul(merged, gate)", gate=heads_closed(r, 1, 2), **GROUPED, **GROUPED_WEIGHTS)


@case(equality="one query head in one group only")
def grouped_query_attention_with_one_closed_head(r):
    return attention(r, o="m = Mul(merged, gate)", gate=heads_closed(r, 1), **GROUPED, **GROUPED_WEIGHTS)


@case(params=9 * 16 + 9 * 8 + 9 * 4 + 8 * 8 + 8)  # features 0 and 3 of the values
def grouped_query_attention_with_closed_value_features(r):
    return attention(r, v="v = Mul(v0, gate)", gate=np.tile(gate(r, 4, (0, 3)), 2), **GROUPED, **GROUPED_WEIGHTS)


def joint(r, divide, o="m = Identity(merged)", closed_values=(), inside_heads=False, **weights):
    """Attention over one projection [8, 3 * 16]; `divide` makes q_h, k_h, v_h [N, 4, S, 4] of t5.

    t5 is [3, N, 4, S, 4], or [N, 4, S, 3 * 4] where the parts lie inside the heads.
    """
    n = HEADS * SIZE
    w, b = weight(r, WIDTH, 3 * n), vector(r, 3 * n)
    for h in closed_values:
        first = (3 * h + 2) * SIZE if inside_heads else 2 * n + h * SIZE
        w[:, first : first + SIZE] = 0
        b[first : first + SIZE] = 0
    if inside_heads:
        return model(
            f"""(float[N,S,8] x) => (float[N,S,8] y) {{
                a0 = MatMul(x, w)
                a = Add(b, a0)
                r5 = Reshape(a, four)
                t5 = Transpose<perm=[0,2,1,3]>(r5)
                {divide}
                kt = Transpose<perm=[0,1,3,2]>(k_h)
                dots = MatMul(q_h, kt)
                p = Softmax<axis=-1>(dots)
                ctx = MatMul(p, v_h)
                back = Transpose<perm=[0,2,1,3]>(ctx)
                merged = Reshape(back, flat)
                {o}
                y0 = MatMul(m, wo)
                y = Add(y0, bo)
            }}""",
            w=w, b=b, four=[0, 0, HEADS, 3 * SIZE], flat=[0, 0, n], wo=weight(r, n, WIDTH), bo=vector(r, WIDTH),
            **weights,
        )  # fmt: skip
    return model(
        f"""(float[N,S,8] x) => (float[N,S,8] y) {{
            a0 = MatMul(x, w)
            a = Add(a0, b)
            r5 = Reshape(a, five)
            t5 = Transpose<perm=[2,0,3,1,4]>(r5)
            {divide}
            kt = Transpose<perm=[0,1,3,2]>(k_h)
            dots = MatMul(q_h, kt)
            p = Softmax<axis=-1>(dots)
            ctx = MatMul(p, v_h)
            back = Transpose<perm=[0,2,1,3]>(ctx)
            merged = Reshape(back, flat)
            {o}
            y0 = MatMul(m, wo)
            y = Add(y0, bo)
        }}""",
        w=w, b=b, five=[0, 0, 3, HEADS, SIZE], flat=[0, 0, n], wo=weight(r, n, WIDTH), bo=vector(r, WIDTH), **weights,
    )  # fmt: skip


BY_SPLIT = """q1, k1, v1 = Split<axis=0, num_outputs=3>(t5)
 q_h = Squeeze(q1, zero)\n k_h = Squeeze(k1, zero)\n v_h = Squeeze(v1, zero)"""
BY_SLICE = """q1 = Slice(t5, zero, one, zero)\n k1 = Slice(t5, one, two, zero)\n v1 = Slice(t5, last, end, zero)
 q_h = Squeeze(q1, zero)\n k_h = Squeeze(k1, zero)\n v_h = Squeeze(v1, zero)"""
BY_GATHER = "q_h = Gather<axis=0>(t5, i0)\n k_h = Gather<axis=0>(t5, i1)\n v_h = Gather<axis=-5>(t5, i2)"


@case(params=attention_params(8, 8))
def attention_over_one_joint_projection(r):
    return joint(r, BY_SPLIT, "m = Mul(merged, gate)", zero=[0], gate=heads_closed(r, 0, 2))


@case(params=attention_params(8, 8))
def joint_projection_divided_by_split_with_closed_values(r):
    return joint(r, BY_SPLIT, closed_values=(0, 2), zero=[0])


@case(params=attention_params(8, 8))
def joint_projection_divided_by_slices_with_closed_values(r):
    ends = {"zero": [0], "one": [1], "two": [2], "last": [-1], "end": [9223372036854775807]}
    return joint(r, BY_SLICE, closed_values=(1, 2), **ends)


@case(params=attention_params(8, 8))
def joint_projection_divided_inside_each_head_with_closed_values(r):
    divide = "q_h, k_h, v_h = Split<axis=-1, num_outputs=3>(t5)"
    return joint(r, divide, closed_values=(0, 2), inside_heads=True)


@case(params=attention_params(8, 8))
def joint_projection_divided_by_gathers_with_closed_values(r):
    index = {f"i{number}": np.array(value, np.int64) for number, value in enumerate((0, 1, -1))}
    return joint(r, BY_GATHER, closed_values=(0, 3), **index)


def fused(r, rank=3, kv_heads=HEADS, o="m = Identity(ctx)", v="v = Identity(v0)", **weights):
    n, nkv = HEADS * SIZE, kv_heads * SIZE
    if rank == 3:
        core = f"ctx = Attention<q_num_heads={HEADS}, kv_num_heads={kv_heads}>(q, k, v)"
    else:
        core = f"{split('q')} {split('k', kv_heads)} {split('v', kv_heads)}"
        core += "c4 = Attention(q_h, k_h, v_h)\n back = Transpose<perm=[0,2,1,3]>(c4)\n ctx = Reshape(back, flat)"
        weights |= {"flat": [0, 0, n], **{f"to_{h}": [0, 0, h, SIZE] for h in {HEADS, kv_heads}}}
    return model(
        f"""(float[N,S,8] x) => (float[N,S,8] y) {{
            q = MatMul(x, wq)
            k = MatMul(x, wk)
            v0 = MatMul(x, wv)
            {v}
            {core}
            {o}
            y = MatMul(m, wo)
        }}""",
        opset=23, wq=weight(r, WIDTH, n), wk=weight(r, WIDTH, nkv), wv=weight(r, WIDTH, nkv), wo=weight(r, n, WIDTH),
        **weights,
    )  # fmt: skip


@case(params=4 * 8 * 8)
def fused_attention_of_rank_3_with_closed_heads(r):
    return fused(r, o="m = Mul(ctx, gate)", gate=heads_closed(r, 1, 2))


@case(params=4 * 8 * 8)
def fused_attention_of_rank_4_with_closed_heads(r):
    return fused(r, rank=4, o="m = Mul(ctx, gate)", gate=heads_closed(r, 1, 2))


@case(equality="the value features of a fused operator")
def fused_attention_with_closed_value_features(r):
    return fused(r, v="v = Mul(v0, gate)", gate=np.tile(gate(r, 4, (0, 3)), 4))


@case(equality="grouped queries in the fused operator")
def fused_grouped_query_attention_with_a_closed_group(r):
    return fused(r, kv_heads=2, o="m = Mul(ctx, gate)", gate=heads_closed(r, 2, 3))


@case(equality="a single closed head of a group in the fused operator")
def fused_grouped_query_attention_with_one_closed_head(r):
    return fused(r, kv_heads=2, o="m = Mul(ctx, gate)", gate=heads_closed(r, 2))


def rotary(r, text, opset, **weights):
    n = HEADS * SIZE
    return model(
        f"""(float[N,6,8] x) => (float[N,6,8] y) {{
            q = MatMul(x, wq)
            k = MatMul(x, wk)
            v = MatMul(x, wv)
            {split('q')} {split('k')} {split('v')}
            {text}
            kt = Transpose<perm=[0,1,3,2]>(k_e)
            dots = MatMul(q_e, kt)
            p = Softmax<axis=-1>(dots)
            ctx = MatMul(p, v_h)
            back = Transpose<perm=[0,2,1,3]>(ctx)
            merged = Reshape(back, flat)
            m = Mul(merged, gate)
            y = MatMul(m, wo)
        }}""",
        opset=opset, wq=weight(r, WIDTH, n), wk=weight(r, WIDTH, n), wv=weight(r, WIDTH, n), wo=weight(r, n, WIDTH),
        to_4=[0, 0, HEADS, SIZE], flat=[0, 0, n], gate=heads_closed(r, 1, 2), **weights,
    )  # fmt: skip


def angles(seconds: int) -> tuple[np.ndarray, np.ndarray]:
    table = np.arange(6)[:, None] / np.array([1.0, 10.0])[None, :]
    table = np.tile(table, (1, seconds))
    return np.cos(table).astype(np.float32), np.sin(table).astype(np.float32)


@case(params=4 * 8 * 8 + 2 * 24)
def rotary_embedding_spelled_out_with_closed_heads(r):
    text = "".join(
        f"""{a}_1 = Slice({a}_h, s0, s2, last)
            {a}_2 = Slice({a}_h, s2, s4, last)
            {a}_n = Neg({a}_2)
            {a}_s = Concat<axis=-1>({a}_n, {a}_1)
            {a}_c = Mul({a}_h, cos)
            {a}_d = Mul({a}_s, sin)
            {a}_e = Add({a}_c, {a}_d)
            """
        for a in "qk"
    )
    cos, sin = angles(2)
    return rotary(r, text, 20, cos=cos, sin=sin, s0=[0], s2=[2], s4=[4], last=[-1])


@case(equality="the rotary operator on closed heads", no_double="RotaryEmbedding takes no float64")
def rotary_embedding_operator_with_closed_heads(r):
    cos, sin = angles(1)
    cos, sin = (np.broadcast_to(a, (1, 6, 2)).copy() for a in (cos, sin))
    text = "".join(f"{a}_e = RotaryEmbedding({a}_h, cos_b, sin_b)\n " for a in "qk")
    text = (
        """sx = Shape(x)
            n = Slice(sx, i0, i1)
            nt = Concat<axis=0>(n, ones)
            cos_b = Tile(cos, nt)
            sin_b = Tile(sin, nt)
            """
        + text
    )
    return rotary(r, text, 23, cos=cos, sin=sin, i0=[0], i1=[1], ones=[1, 1])


@case(nothing="Softmax mixes the axis: a zero still takes part in the sum")
def softmax_over_the_gated_axis(r):
    return dense(r, "m = Softmax<axis=-1>(g)")


@case(nothing="LogSoftmax mixes the axis")
def log_softmax_over_the_gated_axis(r):
    return dense(r, "m = LogSoftmax<axis=1>(g)")


@case(equality="softmax outputs gated: the numerator is unread, the denominator is not")
def softmax_whose_outputs_are_gated(r):
    return dense(r, "n = Softmax<axis=-1>(g)\n m = Mul(n, gate2)", closed=(), gate2=gate(r, 8))


@case(equality="only minus infinity may leave a softmax")
def softmax_over_features_masked_by_minus_infinity(r):
    never = np.zeros(8, np.float32)
    never[[1, 4, 6]] = -np.inf
    return dense(r, "a = Add(g, never)\n m = Softmax<axis=-1>(a)", closed=(1,), never=never)


@case(params=5 * 6 + 5 * 3)
def softmax_over_another_axis_than_the_gate(r):
    return model(
        """(float[N,S,6] x) => (float[N,S,3] y) {
            h = MatMul(x, w1)
            p = Softmax<axis=1>(h)
            g = Mul(p, gate)
            y = MatMul(g, w2)
        }""",
        w1=weight(r, 6, 8), gate=gate(r, 8), w2=weight(r, 8, 3),
    )  # fmt: skip


@case(equality="a closed unit is uniform over the sequence after the softmax, of unknown length")
def softmax_of_zeros_over_another_axis(r):
    return model(
        """(float[N,S,6] x) => (float[N,S,3] y) {
            h = MatMul(x, w1)
            g = Mul(h, gate)
            p = Softmax<axis=1>(g)
            y = MatMul(p, w2)
        }""",
        w1=weight(r, 6, 8), gate=gate(r, 8), w2=weight(r, 8, 3),
    )  # fmt: skip


@case(params=2 * 6 * 5)
def einsum_of_two_activations_over_the_gated_axis(r):
    return model(
        """(float[N,S,6] x) => (float[N,S,S] y) {
            q0 = MatMul(x, wq)
            q = Mul(q0, gate)
            k = MatMul(x, wk)
            y = Einsum<equation="bsd,btd->bst">(q, k)
        }""",
        wq=weight(r, 6, 8), wk=weight(r, 6, 8), gate=gate(r, 8),
    )  # fmt: skip


@case(params=6 * 5 + 5 * 3)
def einsum_with_a_weight(r):
    return model(
        """(float[N,S,6] x) => (float[N,S,3] y) {
            h = Einsum<equation="bsi,oi->bso">(x, w1)
            g = Mul(h, gate)
            y = Einsum<equation="...o,op->...p">(g, w2)
        }""",
        w1=weight(r, 8, 6), gate=gate(r, 8), w2=weight(r, 8, 3),
    )  # fmt: skip


@case(equality="Einsum over heads, with head and feature as two letters")
def einsum_over_heads(r):
    return model(
        """(float[N,S,8] x) => (float[N,S,3] y) {
            q = Einsum<equation="bsi,ihd->bshd">(x, wq)
            k = Einsum<equation="bsi,ihd->bshd">(x, wk)
            v = Einsum<equation="bsi,ihd->bshd">(x, wv)
            dots = Einsum<equation="bshd,bthd->bhst">(q, k)
            p = Softmax<axis=-1>(dots)
            ctx = Einsum<equation="bhst,bthd->bshd">(p, v)
            g = Mul(ctx, gate)
            y = Einsum<equation="bshd,hdo->bso">(g, wo)
        }""",
        wq=weight(r, 8, 4, 4), wk=weight(r, 8, 4, 4), wv=weight(r, 8, 4, 4), wo=weight(r, 4, 4, 3),
        gate=gate(r, 4, (1, 2)).reshape(4, 1),
    )  # fmt: skip


@case(params=10 * 5 + 5 * 3 + 3, integers={"ids": (0, 10)})
def embedding_whose_features_are_gated(r):
    return model(
        """(int64[N,S] ids) => (float[N,S,3] y) {
            e = Gather(table, ids)
            g = Mul(e, gate)
            a = Relu(g)
            y0 = MatMul(a, w)
            y = Add(y0, b)
        }""",
        table=weight(r, 10, 8) * 3, gate=gate(r, 8), w=weight(r, 8, 3), b=vector(r, 3),
    )  # fmt: skip


@case(params=10 * 5, integers={"ids": (0, 10)})
def embedding_tied_to_the_output_layer(r):
    return model(
        """(int64[N,S] ids) => (float[N,S,10] y) {
            e = Gather(table, ids)
            g = Mul(e, gate)
            a = Tanh(g)
            t = Transpose<perm=[1,0]>(table)
            y = MatMul(a, t)
        }""",
        table=weight(r, 10, 8) * 3, gate=np.where(gate(r, 8) > 0, 1, 0).astype(np.float32),
    )  # fmt: skip


@case(equality="rows of the table are chosen by the input, so an all-zero row stays", integers={"ids": (0, 10)})
def embedding_with_zero_rows_and_zero_columns(r):
    table = weight(r, 10, 8) * 3
    table[[2, 5]] = 0
    table[:, [1, 4]] = 0
    return model(
        """(int64[N,S] ids) => (float[N,S,3] y) {
            e = Gather(table, ids)
            a = Sigmoid(e)
            y = MatMul(a, w)
        }""",
        table=table, w=weight(r, 8, 3),
    )  # fmt: skip


def block(r, stream, norm_gate=None, closed_inner=(1, 4, 6), final="float[N,S,8] y"):
    """A pre-norm transformer block over embeddings whose closed features are closed at every write to the stream."""
    n = HEADS * SIZE
    z = np.ones(8, np.float32)
    z[list(stream)] = 0
    return model(
        f"""(int64[N,S] ids) => (float[N,S,5] y) {{
            e0 = Gather(table, ids)
            e = Mul(e0, z)
            n1 = LayerNormalization(e, s1, c1)
            l1 = Mul(n1, z)
            q = MatMul(l1, wq)
            k = MatMul(l1, wk)
            v = MatMul(l1, wv)
            {split('q')} {split('k')} {split('v')}
            kt = Transpose<perm=[0,1,3,2]>(k_h)
            dots = MatMul(q_h, kt)
            p = Softmax<axis=-1>(dots)
            ctx = MatMul(p, v_h)
            back = Transpose<perm=[0,2,1,3]>(ctx)
            merged = Reshape(back, flat)
            mg = Mul(merged, zh)
            a0 = MatMul(mg, wo)
            a1 = Add(a0, bo)
            a = Mul(a1, z)
            t = Add(e, a)
            n2 = LayerNormalization(t, s2, c2)
            l2 = Mul(n2, z)
            f0 = MatMul(l2, wf)
            f1 = Add(f0, bf)
            f2 = Gelu(f1)
            f3 = Mul(f2, zf)
            f4 = MatMul(f3, wg)
            f5 = Add(f4, bg)
            f = Mul(f5, z)
            u = Add(t, f)
            n3 = LayerNormalization(u, s3, c3)
            l3 = Mul(n3, z)
            y = MatMul(l3, head)
        }}""",
        table=weight(r, 10, 8) * 3, z=z, wq=weight(r, 8, n), wk=weight(r, 8, n), wv=weight(r, 8, n), wo=weight(r, n, 8),
        bo=vector(r, 8), to_4=[0, 0, HEADS, SIZE], flat=[0, 0, n], zh=heads_closed(r, 1, 2), wf=weight(r, 8, 12),
        bf=vector(r, 12), zf=gate(r, 12, closed_inner), wg=weight(r, 12, 8), bg=vector(r, 8), head=weight(r, 8, 5),
        **{f"{a}{i}": vector(r, 8) for a in "sc" for i in (1, 2, 3)},
    )  # fmt: skip


@case(params=10 * 5 + 3 * 10 + 4 * 5 * 8 + 5 + 5 * 9 + 9 + 9 * 5 + 5 + 5 * 5, integers={"ids": (0, 10)})
def transformer_block_with_gated_stream_heads_and_units(r):
    return block(r, (0, 3, 5))


@case(params=10 * 8 + 6 * 8 + 4 * 8 * 8 + 8 + 8 * 9 + 9 + 9 * 8 + 8 + 8 * 5, integers={"ids": (0, 10)})
def transformer_block_with_gated_heads_and_units(r):
    return block(r, ())


@case(params=10 * 8 + 6 * 8 + 4 * 8 * 8 + 8 + 8 + 8 * 5, integers={"ids": (0, 10)})  # gelu(0) = 0: its bias stays
def transformer_block_whose_feed_forward_is_closed(r):
    return block(r, (), closed_inner=tuple(range(12)))


@case(equality="a class token and positions join the stream")
def class_token_and_positions(r):
    z = gate(r, 8)
    return model(
        """(float[N,3,8,8] x) => (float[N,5] y) {
            c = Conv<strides=[4,4]>(x, w, b)
            f = Reshape(c, flat)
            t0 = Transpose<perm=[0,2,1]>(f)
            s = Shape(x)
            n = Slice(s, i0, i1)
            shape = Concat<axis=0>(n, tail)
            cls = Expand(token, shape)
            j = Concat<axis=1>(cls, t0)
            e0 = Add(j, positions)
            e = Mul(e0, z)
            l = RMSNormalization(e, scale)
            first = ReduceMean<keepdims=0>(l, along)
            y = Gemm(first, head)
        }""",
        opset=23, w=weight(r, 8, 3, 4, 4), b=vector(r, 8), flat=[0, 8, 4], token=weight(r, 1, 1, 8), i0=[0], i1=[1],
        tail=[1, 8], positions=weight(r, 1, 5, 8), z=z, scale=vector(r, 8), along=[1], head=weight(r, 8, 5),
    )  # fmt: skip
