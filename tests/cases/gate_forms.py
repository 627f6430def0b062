"""How a gate may be written: a constant vector, a mask, or the arithmetic that computes it from log_alpha."""

from __future__ import annotations

import numpy as np

from cases.sandwich import DENSE_ALL, DENSE_LIVE
from cases.table import case, gate, model, vector, weight


def log_alpha(r, closed=(1, 4, 6)):
    """Far from the threshold log(0.1 / 1.1) * 2 / 3 of the stretched sigmoid on either side."""
    a = r.uniform(-0.5, 1.5, 8).astype(np.float32)
    a[list(closed)] = -6.0
    return a


def written(r, nodes, inputs="", opset=20, **weights):
    """x -> Gemm -> NODES (h to g) -> Relu -> Gemm -> y."""
    return model(
        f"""(float[N,6] x{inputs}) => (float[N,3] y) {{
            h = Gemm<transB=1>(x, w1, b1)
            {nodes}
            a = Relu(g)
            y = Gemm<transB=1>(a, w2, b2)
        }}""",
        opset=opset, w1=weight(r, 8, 6), b1=vector(r, 8), w2=weight(r, 3, 8), b2=vector(r, 3), **weights,
    )  # fmt: skip


STRETCH = {"span": 1.2, "offset": 0.1, "zero": 0.0, "one": 1.0}


@case(params=DENSE_LIVE)
def gate_computed_from_log_alpha(r):
    nodes = "s = Sigmoid(la)\n t = Mul(s, span)\n u = Sub(t, offset)\n z = Clip(u, zero, one)\n g = Mul(h, z)"
    return written(r, nodes, la=log_alpha(r), **STRETCH)


@case(params=DENSE_LIVE)
def gate_clamped_by_min_and_max(r):
    nodes = """s = Sigmoid(la)
            t = Mul(s, span)
            u = Sub(t, offset)
            v = Max(u, zero)
            z = Min(v, one)
            g = Mul(h, z)"""
    return written(r, nodes, la=log_alpha(r), **STRETCH)


@case(params=DENSE_LIVE)
def gate_by_comparison_and_cast(r):
    nodes = "b = Greater(la, offset)\n z = Cast<to=1>(b)\n g = Mul(h, z)"
    return written(r, nodes, la=np.where(gate(r, 8) > 0, 1, -1).astype(np.float32), offset=0.1)


@case(params=DENSE_LIVE)
def gate_by_comparison_and_where(r):
    nodes = "b = Less(la, offset)\n g = Where(b, zero, h)"
    return written(r, nodes, la=np.where(gate(r, 8) > 0, 1, -1).astype(np.float32), offset=0.1, zero=0.0)


@case(params=DENSE_LIVE)
def gate_applied_to_the_weights(r):
    made = written(r, "g = Identity(h)", gate=gate(r, 8).reshape(8, 1), gate_b=(gate(r, 8) > 0).astype(np.float32))
    import onnx

    made.graph.node[0].input[1], made.graph.node[0].input[2] = "w1z", "b1z"
    made.graph.node.insert(0, onnx.helper.make_node("Mul", ["w1", "gate"], ["w1z"]))
    made.graph.node.insert(0, onnx.helper.make_node("Mul", ["b1", "gate_b"], ["b1z"]))
    return made


@case(params=DENSE_LIVE)
def gate_as_a_constant_node(r):
    values = ", ".join(str(float(v)) for v in gate(r, 8))
    return written(r, f"z = Constant<value = float[8] {{{values}}}>()\n g = Mul(h, z)")


@case(params=DENSE_LIVE)
def gate_as_a_constant_node_of_floats(r):
    values = ", ".join(str(float(v)) for v in gate(r, 8))
    return written(r, f"z = Constant<value_floats = [{values}]>()\n g = Mul(z, h)")


@case(params=DENSE_LIVE)
def gate_reached_through_reshape_unsqueeze_and_expand(r):
    nodes = """p = Reshape(z, s)
            q = Squeeze(p, ax)
            f = Reshape(q, flat)
            u = Unsqueeze(f, zeroth)
            e = Expand(u, one8)
            g = Mul(h, e)"""
    return written(r, nodes, z=gate(r, 8), s=[2, 1, 4], ax=[1], flat=[-1], zeroth=[0], one8=[1, 8])


@case(params=DENSE_LIVE)
def two_gates_one_after_the_other(r):
    return written(r, "p = Mul(h, z1)\n g = Mul(z2, p)", z1=gate(r, 8, (1,)), z2=gate(r, 8, (4, 6)))


@case(params=DENSE_LIVE)
def gate_stored_in_float16(r):
    return written(r, "z = Cast<to=1>(z16)\n g = Mul(h, z)", z16=gate(r, 8).astype(np.float16))


@case(params=DENSE_LIVE)
def gate_stored_as_integers(r):
    return written(r, "z = Cast<to=1>(zi)\n g = Mul(h, z)", zi=(gate(r, 8) > 0).astype(np.int32))


@case(params=DENSE_LIVE)
def gate_scattered_into_zeros(r):
    nodes = "z = ScatterElements(base, places, values)\n g = Mul(h, z)"
    return written(r, nodes, base=np.zeros(8, np.float32), places=[0, 2, 3, 5, 7], values=np.full(5, 0.5, np.float32))


@case(params=DENSE_LIVE)
def gate_divided_out_of_its_sum(r):
    nodes = "t = ReduceSum<keepdims=0>(la, ax)\n z = Div(la, t)\n g = Mul(h, z)"
    return written(r, nodes, la=gate(r, 8), ax=[0])


@case(nothing="the gate depends on the input")
def gate_computed_from_the_input(r):
    nodes = """k = Gemm<transB=1>(x, wk)
            s = Sigmoid(k)
            t = Mul(s, span)
            u = Sub(t, offset)
            z = Clip(u, zero, one)
            g = Mul(h, z)"""
    return written(r, nodes, wk=weight(r, 8, 6), **STRETCH)


@case(nothing="the gate is an input of the graph")
def gate_given_by_the_caller(r):
    return written(r, "g = Mul(h, z)", inputs=", float[8] z")


@case(equality="one gate for the whole layer, and it is closed", constant_output=True)
def scalar_gate_that_is_closed(r):
    return written(r, "g = Mul(h, z)", z=0.0)


@case(params=DENSE_ALL)
def scalar_gate_that_is_open(r):
    return written(r, "g = Mul(h, z)", z=0.75)


@case(nothing="minus zero apart, no number here is zero: the smallest is 1e-30")
def gate_that_is_tiny_but_not_zero(r):
    z = gate(r, 8, ())
    z[[1, 4]] = 1e-30
    return written(r, "g = Mul(h, z)", z=z)


@case(params=DENSE_LIVE)
def gate_that_is_minus_zero(r):
    z = gate(r, 8)
    z[[1, 4]] = -0.0
    return written(r, "g = Mul(h, z)", z=z)


@case(equality="the closed units of the first summand go from its own layer at most")
def gate_on_one_summand_only(r):
    nodes = "k = Gemm<transB=1>(x, wk)\n p = Mul(h, z)\n q = Add(p, k)\n g = Softplus(q)"
    return written(r, nodes, z=gate(r, 8), wk=weight(r, 8, 6))
