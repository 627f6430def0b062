"""Which operators does hardly any model use next to a gate? Indices, counts, bits: mostly places that must stay."""

from __future__ import annotations

import numpy as np

from cases.sandwich import DENSE_LIVE, dense, image, image_params
from cases.table import case, gate, model, vector, weight


@case(params=DENSE_LIVE)
def swish(r):
    return dense(r, "m = Swish<alpha=1.5>(g)", opset=24)


@case(params=image_params(5))
def triangle_of_every_channel(r):
    return image(r, "m = Trilu<upper=1>(g)")


def rows(r, text, inputs="", opset=20, **weights):
    """TEXT reads h [N, S, 8], of which features 1, 4 and 6 are closed, and makes m [..., 8]."""
    return model(
        f"""(float[N,S,6] x{inputs}) => (float[N,P,3] y) {{
            h0 = MatMul(x, w1)
            h = Mul(h0, gate)
            {text}
            y = MatMul(m, w2)
        }}""",
        opset=opset, w1=weight(r, 6, 8), gate=gate(r, 8), w2=weight(r, 8, 3), **weights,
    )  # fmt: skip


@case(params=6 * 5 + 5 * 3, integers={"i": (0, 4)})
def rows_gathered_by_computed_places(r):
    return rows(r, "m = GatherND<batch_dims=1>(h, i)", ", int64[N,P,1] i")


@case(params=2 * 6 * 5 + 5 * 3, integers={"i": (0, 1)})
def rows_scattered_to_computed_places(r):
    """The rows that are written have the same closed features as those that they replace."""
    text = "u0 = MatMul(z, w3)\n u = Mul(u0, gate2)\n m = ScatterND(h, i, u)"
    made = rows(r, text, ", float[1,S,6] z, int64[1,1] i", w3=weight(r, 6, 8), gate2=gate(r, 8))
    made.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "S"
    return made


@case(equality="which features are taken is a condition, and counts their places")
def features_taken_by_a_condition(r):
    return dense(r, "m = Compress<axis=1>(g, chosen)", width=5, chosen=np.arange(8) % 3 != 1)


@case(equality="the places of what is not zero are counted through all features", constant_output=True)
def places_of_what_is_not_zero(r):
    return model(
        """(float[N,6] x) => (float[2] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            p = NonZero(g)
            f = Cast<to=1>(p)
            y = ReduceSum<keepdims=0>(f, along)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8), along=[1],
    )  # fmt: skip


@case(equality="the closed features are one of the numbers that are told apart", constant_output=True)
def number_of_different_values(r):
    return model(
        """(float[N,6] x) => (float[1] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            u = Unique(g)
            s = Shape(u)
            y = Cast<to=1>(s)
        }""",
        w1=weight(r, 8, 6), b1=vector(r, 8), gate=gate(r, 8),
    )  # fmt: skip


@case(equality="the rows of an identity are as many as its argument has", sizes={"K": (8, 8)})
def identity_like_an_input(r):
    return model(
        """(float[N,6] x, float[8,8] like) => (float[N,3] y) {
            h0 = MatMul(x, w1)
            h = Mul(h0, gate)
            e = EyeLike(like)
            m = MatMul(h, e)
            y = MatMul(m, w2)
        }""",
        w1=weight(r, 6, 8), gate=gate(r, 8), w2=weight(r, 8, 3),
    )  # fmt: skip


@case(equality="a category is a place", integers={"c": (0, 8)})
def gate_behind_categories(r):
    return model(
        """(int64[N,S] c) => (float[N,S,3] y) {
            o = OneHot(c, depth, values)
            g = Mul(o, gate)
            y = MatMul(g, w2)
        }""",
        depth=np.int64(8), values=np.float32([0.25, 1.0]), gate=gate(r, 8), w2=weight(r, 8, 3),
    )  # fmt: skip


def bits(r, operator, kind, tensor_type, mask):
    """A gated layer in whole numbers, of which OPERATOR takes the bits."""
    return dense(
        r, f"t = Mul(g, ten)\n a = Abs(t)\n i = Cast<to={tensor_type}>(a)\n b = {operator}\n m = Cast<to=1>(b)",
        ten=np.float32(10), mask=np.asarray(mask, kind),
    )  # fmt: skip


@case(equality="bits of whole numbers are not followed")
def bits_that_both_have(r):
    return bits(r, "BitwiseAnd(i, mask)", np.int32, 6, [5, 1, 7, 2, 3, 6, 4, 7])


@case(equality="bits of whole numbers are not followed")
def bits_that_one_has(r):
    return bits(r, "BitwiseOr(i, mask)", np.int32, 6, [5, 1, 7, 2, 3, 6, 4, 7])


@case(equality="bits of whole numbers are not followed")
def bits_that_differ(r):
    return bits(r, "BitwiseXor(i, mask)", np.int32, 6, [5, 1, 7, 2, 3, 6, 4, 7])


@case(equality="bits of whole numbers are not followed")
def bits_turned_over(r):
    return bits(r, "BitwiseNot(i)", np.int32, 6, [0])


@case(equality="bits of whole numbers are not followed")
def bits_shifted(r):
    return bits(r, 'BitShift<direction="LEFT">(i, mask)', np.uint32, 12, [1, 2, 1, 0, 1, 3, 1, 2])
