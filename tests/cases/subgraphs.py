"""If and Loop: what their bodies capture stays whole."""

from __future__ import annotations

import numpy as np

from cases.table import case, gate, model, vector, weight


def layers(r, **more):
    own = {"w1": weight(r, 8, 6), "b1": vector(r, 8), "gate": gate(r, 8), "w2": weight(r, 3, 8), "b2": vector(r, 3)}
    return {**own, **more}


@case(nothing="the bodies capture the gated value")
def if_whose_bodies_capture_a_gated_value(r):
    return model(
        """(float[N,6] x, bool c) => (float[N,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            m = If (c) <
                then_branch = a () => (float[N,8] p) { p = Sigmoid(g) },
                else_branch = b () => (float[N,8] q) { q = Neg(g) }
            >
            y = Gemm<transB=1>(m, w2, b2)
        }""",
        **layers(r),
    )  # fmt: skip


@case(params=5 * 6 + 5 + 3 * 5 + 3)
def if_that_captures_another_value(r):
    return model(
        """(float[N,6] x, bool c) => (float[N,3] y) {
            v = If (c) <
                then_branch = a () => (float[N,6] p) { p = Sigmoid(x) },
                else_branch = b () => (float[N,6] q) { q = Neg(x) }
            >
            h = Gemm<transB=1>(v, w1, b1)
            g = Mul(h, gate)
            m = Sigmoid(g)
            y = Gemm<transB=1>(m, w2, b2)
        }""",
        **layers(r),
    )  # fmt: skip


@case(nothing="the body reads the gated value and the second layer's weights from outside")
def if_whose_body_holds_the_reader(r):
    return model(
        """(float[N,6] x, bool c) => (float[N,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            y = If (c) <
                then_branch = a () => (float[N,3] p) { p = Gemm<transB=1>(g, w2, b2) },
                else_branch = b () => (float[N,3] q) { q = Gemm<transB=1, alpha=-1.0>(g, w2, b2) }
            >
        }""",
        **layers(r),
    )  # fmt: skip


@case(equality="a whole gated pair lives inside a body")
def if_whose_body_holds_a_gated_pair(r):
    return model(
        """(float[N,6] x, bool c) => (float[N,3] y) {
            y = If (c) <
                then_branch = a () => (float[N,3] p) {
                    h = Gemm<transB=1>(x, w1, b1)
                    g = Mul(h, gate)
                    p = Gemm<transB=1>(g, w2, b2)
                },
                else_branch = b () => (float[N,3] q) {
                    h2 = Gemm<transB=1>(x, w1, b1)
                    q = Gemm<transB=1>(h2, w2, b2)
                }
            >
        }""",
        **layers(r),
    )  # fmt: skip


@case(equality="outside and inside read the same weights, gated differently")
def weights_shared_between_a_body_and_the_main_graph(r):
    return model(
        """(float[N,6] x, bool c) => (float[N,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            a1 = Gemm<transB=1>(g, w2, b2)
            e = If (c) <
                then_branch = a () => (float[N,8] p) { p = Gemm<transB=1>(x, w1, b1) },
                else_branch = b () => (float[N,8] q) { q = Relu(h) }
            >
            a2 = Gemm<transB=1>(e, w2, b2)
            y = Add(a1, a2)
        }""",
        **layers(r),
    )  # fmt: skip


@case(equality="the loop carries the gated value from one turn to the next")
def loop_that_carries_a_gated_value(r):
    return model(
        """(float[N,6] x) => (float[N,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            m = Loop (turns, go, g) <
                body = b (int64 i, bool keep, float[N,8] state) => (bool keep_out, float[N,8] state_out) {
                    keep_out = Identity(keep)
                    s = MatMul(state, inner)
                    state_out = Tanh(s)
                }
            >
            y = Gemm<transB=1>(m, w2, b2)
        }""",
        **layers(r, turns=np.asarray(3, np.int64), go=np.asarray(True), inner=weight(r, 8, 8)),
    )  # fmt: skip


@case(nothing="the loop's body captures the gated value")
def loop_whose_body_captures_a_gated_value(r):
    return model(
        """(float[N,6] x, float[N,8] v) => (float[N,3] y) {
            h = Gemm<transB=1>(x, w1, b1)
            g = Mul(h, gate)
            m = Loop (turns, go, v) <
                body = b (int64 i, bool keep, float[N,8] state) => (bool keep_out, float[N,8] state_out) {
                    keep_out = Identity(keep)
                    s = Add(state, g)
                    state_out = Tanh(s)
                }
            >
            y = Gemm<transB=1>(m, w2, b2)
        }""",
        **layers(r, turns=np.asarray(3, np.int64), go=np.asarray(True)),
    )  # fmt: skip


@case(equality="a scan over the sequence with the gated features as its elements")
def scan_over_gated_features(r):
    return model(
        """(float[S,6] x, float[8] v) => (float[8] last, float[S,3] y) {
            h = MatMul(x, w)
            g = Mul(h, gate)
            last, m = Scan (v, g) <
                num_scan_inputs = 1,
                body = b (float[8] state, float[8] row) => (float[8] next, float[8] out) {
                    t = Add(state, row)
                    next = Tanh(t)
                    out = Identity(t)
                }
            >
            y = Gemm<transB=1>(m, w2, b2)
        }""",
        w=weight(r, 6, 8), gate=gate(r, 8), w2=weight(r, 3, 8), b2=vector(r, 3),
    )  # fmt: skip
