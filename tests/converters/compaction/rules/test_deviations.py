"""Means of squared deviations whose constants go; expected values from NumPy over all entries."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from rule_case import TOLERANCE, Array, build, compacted, difference, run, sizes

from converters.compaction.rules import deviations, reduction

R = np.random.default_rng(17)
W1, B1, W2, SCALE = R.normal(size=(6, 8)), R.normal(size=8), R.normal(size=(8, 3)), R.uniform(0.5, 1.5, 8)
DEAD = [1, 4, 6]
W1[:, DEAD] = 0
ZEROS = B1.copy()
ZEROS[DEAD] = 0
W2_CLOSED = W2.copy()
W2_CLOSED[DEAD] = 0
X = R.normal(size=(5, 6)) + 1.5

TEXT = """(double[N,6] x) => (double[N,3] y) {
    h0 = MatMul(x, w1)
    h = Add(h0, b1)
    m = ReduceMean<keepdims=1>(h, last)
    VARIANCE
    ve = Add(v, eps)
    sd = Sqrt(ve)
    q = Div(h, sd)
    qs = Mul(q, s)
    y = MatMul(qs, w2)
}"""
VARIANCES = {
    "difference": "d = Sub(h, m)  d2 = Mul(d, d)  v = ReduceMean<keepdims=1>(d2, last)",
    "the other way round": "d = Sub(m, h)  d2 = Mul(d, d)  v = ReduceMean<keepdims=1>(d2, last)",
    "power": "d = Sub(h, m)  d2 = Pow(d, two)  v = ReduceMean<keepdims=1>(d2, last)",
    "without the dimension": """d = Sub(h, m)  d2 = Mul(d, d)
        v0 = ReduceMean<keepdims=0>(d2, last)  v = Unsqueeze(v0, last)""",
    "unbiased": """d = Sub(h, m)  d2 = Mul(d, d)  v0 = ReduceSum<keepdims=1>(d2, last)  v = Div(v0, seven)""",
    "unbiased without the dimension": """d = Sub(h, m)  d2 = Mul(d, d)
        v0 = ReduceSum<keepdims=0>(d2, last)  v1 = Unsqueeze(v0, last)  v = Div(v1, seven)""",
}


def model(kind: str = "difference", b1: Array = ZEROS, w2: Array = W2_CLOSED) -> onnx.ModelProto:
    text = TEXT.replace("VARIANCE", VARIANCES[kind])
    return build(text, w1=W1, b1=b1, w2=w2, s=SCALE, eps=0.25, two=2.0, seven=7.0, last=[-1])


def by_hand(kind: str, b1: Array, w2: Array, x: Array = X) -> Array:
    h = x @ W1 + b1
    v = h.var(axis=1, ddof=1 if "unbiased" in kind else 0, keepdims=True)
    return (h / np.sqrt(v + 0.25) * SCALE) @ w2


@pytest.mark.parametrize("constants", ["zero", "one number", "different"])
@pytest.mark.parametrize("kind", VARIANCES)
def test_a_variance_counts_the_constants_that_went(kind: str, constants: str) -> None:
    b1 = {"zero": ZEROS, "one number": np.where(ZEROS == 0, 2.0, ZEROS), "different": B1}[constants]
    compact_model = compacted(model(kind, b1))
    assert (6, 5) in sizes(compact_model)
    assert (5, 3) in sizes(compact_model)
    expected = by_hand(kind, b1, W2_CLOSED)
    np.testing.assert_allclose(run(compact_model, X), expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def test_axes_may_be_an_attribute() -> None:
    text = TEXT.replace("VARIANCE", VARIANCES["without the dimension"]).replace("(h, last)", "(h)")
    text = text.replace("(d2, last)", "(d2)").replace("<keepdims", "<axes=[-1], keepdims")
    made = build(text, 13, w1=W1, b1=B1, w2=W2_CLOSED, s=SCALE, eps=0.25, last=[-1])
    assert (6, 5) in sizes(compacted(made))
    assert difference(made, X) < TOLERANCE


def test_dead_features_that_are_read_are_multiples_of_one_number() -> None:
    # c / sd: one of the three stands for all
    compact_model = compacted(model("difference", B1, W2))
    assert (6, 6) in sizes(compact_model)
    expected = by_hand("difference", B1, W2)
    np.testing.assert_allclose(run(compact_model, X), expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def test_deviations_that_are_not_added_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduction, "add_deviations", lambda edit, node, relation: None)
    assert difference(model(), X) > 0.01


def around_another_number() -> onnx.ModelProto:
    """The mean of the squares of h - u, where u is no mean of h; the outputs of features 1, 4 and 6 are not read."""
    text = """(double[N,6] x) => (double[N,3] y) {
        h = MatMul(x, w1)
        u = ReduceMean<keepdims=1>(x, last)
        d = Sub(h, u)
        d2 = Mul(d, d)
        v = ReduceMean<keepdims=1>(d2, last)
        q = Div(h, v)
        y = MatMul(q, w2)
    }"""
    return build(text, w1=W1 + 1, w2=W2_CLOSED, last=[1])


def test_what_is_not_constant_stays_although_nobody_else_reads_it() -> None:
    assert (6, 8) in sizes(compacted(around_another_number()))
    assert difference(around_another_number(), X) < TOLERANCE


@pytest.mark.parametrize("step", ["require", "shrink"])
def test_deviations_that_let_anything_go_are_caught(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = np.ones(8, bool)
    steps = {"require": lambda self, live, facts: setattr(self, "permitted", everything), "shrink": lambda *args: None}
    monkeypatch.setattr(deviations.Deviations, step, steps[step])
    assert difference(around_another_number(), X) > 0.01


def test_squares_of_differences_along_the_axis_are_not_deviations() -> None:
    # what is subtracted has the axis too, so its constants do not add what y alone says
    text = """(double[N,6] x) => (double[N,1] y) {
        h = MatMul(x, w1)
        k = MatMul(x, w3)
        d = Sub(h, k)
        d2 = Mul(d, d)
        y = ReduceMean<keepdims=1>(d2, last)
    }"""
    made = build(text, w1=W1, w3=R.normal(size=(6, 8)), last=[1])
    assert difference(made, X) < TOLERANCE


@pytest.mark.parametrize(("size", "width"), [("1", 5), ("K", 8), ("8", 8)])
def test_a_length_that_is_a_symbol_is_not_taken_for_one(size: str, width: int) -> None:
    text = f"""(double[N,6] x, double[N,{size}] u) => (double[N,1] y) {{
        h = MatMul(x, w1)
        d = Sub(h, u)
        d2 = Mul(d, d)
        y = ReduceMean<keepdims=1>(d2, ones)
    }}"""
    assert sizes(compacted(build(text, w1=W1, ones=[1]))) == [(6, width)]


def test_a_subtrahend_that_is_known_leaves_nothing_to_correct() -> None:
    # y is zero for every input, so the difference is x itself and may not be there any more
    text = """(double[N,6] x) => (double[N,1] y) {
        h = MatMul(x, w1)
        m0 = ReduceMean<keepdims=1>(x, ones)
        m = Mul(m0, nothing)
        d = Sub(h, m)
        d2 = Mul(d, d)
        y = ReduceMean<keepdims=1>(d2, ones)
    }"""
    made = build(text, w1=W1, nothing=0.0, ones=[1])
    assert difference(made, X) < TOLERANCE
