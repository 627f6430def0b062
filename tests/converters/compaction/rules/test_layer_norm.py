"""Norms over features that are exactly zero; expected values from NumPy over all features."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from rule_case import TOLERANCE, Array, build, compacted, difference, run, sizes, without_fixup

from converters.compaction.rules import layer_norm, linear

R = np.random.default_rng(7)
W1, B1 = R.normal(size=(6, 8)), R.normal(size=8)
W1[:, [1, 4, 6]] = 0
B1[[1, 4, 6]] = 0
SCALE, BIAS, W2 = R.uniform(0.5, 1.5, 8), R.normal(size=8), R.normal(size=(8, 3))
X = R.normal(size=(5, 6)) + 1.5  # the mean of the survivors is far from zero

TEXT = """(double[N,6] x) => (double[N,3] y) {
    h0 = MatMul(x, w1)
    h = Add(h0, b1)
    NORM
    y = MatMul(n, w2)
}"""
LAYER_NORM = "n = LayerNormalization<axis=-1, epsilon=0.25>(h, s, b)"
SPELLED = """m = ReduceMean<keepdims=1>(h, last)
    d = Sub(h, m)
    d2 = Mul(d, d)
    v = ReduceMean<keepdims=1>(d2, last)
    ve = Add(v, eps)
    sd = Sqrt(ve)
    q = Div(d, sd)
    qs = Mul(q, s)
    n = Add(qs, b)"""


def dense(norm: str, opset: int = 20, w2: Array = W2, **weights: Array | float | list[int]) -> onnx.ModelProto:
    return build(TEXT.replace("NORM", norm), opset, w1=W1, b1=B1, w2=w2, **weights)


def layer_norm_by_hand(x: Array, w2: Array = W2) -> Array:
    h = x @ W1 + B1
    centred = h - h.mean(axis=1, keepdims=True)
    return (centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 0.25) * SCALE + BIAS) @ w2


def closed_rows() -> Array:
    w2 = W2.copy()
    w2[[1, 4, 6]] = 0
    return w2


def test_statistics_count_the_zeros_that_were_removed() -> None:
    model = dense(LAYER_NORM, w2=closed_rows(), s=SCALE, b=BIAS)
    compact_model = compacted(model)
    assert sizes(compact_model) == [(5,), (5,), (5,), (5, 3), (6, 5)]
    np.testing.assert_allclose(run(compact_model, X), layer_norm_by_hand(X, closed_rows()), rtol=0, atol=TOLERANCE)


def test_a_norm_over_the_survivors_alone_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    without_fixup(monkeypatch, "LayerNormalization")
    assert difference(dense(LAYER_NORM, w2=closed_rows(), s=SCALE, b=BIAS), X) > 0.01


def test_one_dead_output_stands_in_for_all_dead_outputs_that_are_read() -> None:
    compact_model = compacted(dense(LAYER_NORM, s=SCALE, b=BIAS))
    assert sizes(compact_model) == [(3,), (6,), (6,), (6,), (6, 3), (6, 6)]
    np.testing.assert_allclose(run(compact_model, X), layer_norm_by_hand(X), rtol=0, atol=TOLERANCE)


def test_a_stand_in_that_does_not_take_over_the_weights_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "merge_twins", lambda weight, inner, going, *rest: (weight, np.zeros(3)))
    assert difference(dense(LAYER_NORM, s=SCALE, b=BIAS), X) > 0.01


@pytest.mark.parametrize("opset", [13, 18, 20])
def test_a_spelled_out_norm_loses_the_same(opset: int) -> None:
    text = SPELLED if opset >= 18 else SPELLED.replace("<keepdims=1>(h, last)", "<axes=[-1]>(h)")
    text = text if opset >= 18 else text.replace("<keepdims=1>(d2, last)", "<axes=[-1]>(d2)")
    weights = {"last": [-1]} if opset >= 18 else {}
    model = dense(text, opset, s=SCALE, b=BIAS, eps=0.25, **weights)
    compact_model = compacted(model)
    assert sizes(compact_model) == [(3,), (6,), (6,), (6,), (6, 3), (6, 6)]
    alive = build(TEXT.replace("NORM", text), opset, w1=W1 + 1, b1=B1, w2=W2, s=SCALE, b=BIAS, eps=0.25, **weights)
    # below opset 17 there is no such operator, so the model keeps its norm spelled out
    assert ("LayerNormalization" in {node.op_type for node in compacted(alive).graph.node}) == (opset >= 17)
    np.testing.assert_allclose(run(compact_model, X), layer_norm_by_hand(X), rtol=0, atol=TOLERANCE)


def test_constants_that_are_not_zero_stay() -> None:
    model = build(TEXT.replace("NORM", LAYER_NORM), w1=W1, b1=B1 + 1, w2=closed_rows(), s=SCALE, b=BIAS)
    assert (6, 8) in sizes(compacted(model))
    assert difference(model, X) < TOLERANCE


def test_too_few_zeros_do_not_pay_for_writing_the_norm_out() -> None:
    w1, scale = R.normal(size=(6, 200)), R.normal(size=200)
    w1[:, 0] = 0
    text = "(double[N,6] x) => (double[N,3] y) { h = MatMul(x, w1) n = LayerNormalization(h, s) y = MatMul(n, w2) }"
    w2 = R.normal(size=(200, 3))
    w2[0] = 0
    model = build(text, w1=w1, s=scale, w2=w2)
    assert [n.op_type for n in compacted(model).graph.node] == ["MatMul", "LayerNormalization", "MatMul"]


def test_a_zero_scale_makes_its_output_the_bias_without_freeing_the_input() -> None:
    scale = SCALE.copy()
    scale[[0, 2]] = 0
    model = build(TEXT.replace("NORM", LAYER_NORM), w1=W1 + 1, b1=B1, w2=W2, s=scale, b=BIAS)
    assert (6, 8) in sizes(compacted(model))
    assert difference(model, X) < TOLERANCE


RMS = "n = RMSNormalization<axis=-1, epsilon=0.25>(h, s)"
RMS_SPELLED = """d2 = Pow(h, two)
    v = ReduceMean<keepdims=1>(d2, last)
    ve = Add(v, eps)
    sd = Sqrt(ve)
    i = Reciprocal(sd)
    q = Mul(h, i)
    n = Mul(q, s)"""


def rms_norm_by_hand(x: Array) -> Array:
    h = x @ W1 + B1
    return (h / np.sqrt((h**2).mean(axis=1, keepdims=True) + 0.25) * SCALE) @ W2


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(dense(RMS, 23, s=SCALE), id="operator"),
        pytest.param(dense(RMS_SPELLED, s=SCALE, two=2.0, eps=0.25, last=[-1]), id="spelled out"),
    ],
)
def test_mean_square_counts_the_zeros_that_were_removed(model: onnx.ModelProto) -> None:
    compact_model = compacted(model)
    assert (6, 5) in sizes(compact_model)
    assert (5, 3) in sizes(compact_model)
    np.testing.assert_allclose(run(compact_model, X), rms_norm_by_hand(X), rtol=0, atol=TOLERANCE)


def test_a_mean_square_over_the_survivors_alone_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    without_fixup(monkeypatch, "RMSNormalization", "ReduceMean")
    assert difference(dense(RMS, 23, s=SCALE), X) > 0.01
    assert difference(dense(RMS_SPELLED, s=SCALE, two=2.0, eps=0.25, last=[-1]), X) > 0.01


def test_epsilon_that_fits_its_attribute_is_absorbed_and_any_other_is_written_out() -> None:
    # 5 of 8 are left: 0.25 * 8 / 5 is no float32 number; 4 of 8: 0.25 * 2 is one
    assert "RMSNormalization" not in {n.op_type for n in compacted(dense(RMS, 23, s=SCALE)).graph.node}
    w1, b1 = W1.copy(), B1.copy()
    w1[:, 0] = b1[0] = 0
    model = build(TEXT.replace("NORM", RMS), 23, w1=w1, b1=b1, w2=W2, s=SCALE)
    assert "RMSNormalization" in {n.op_type for n in compacted(model).graph.node}
    assert difference(model, X) < TOLERANCE


def test_zeros_leave_an_l2_normalisation() -> None:
    model = dense("n = LpNormalization<axis=-1, p=2>(h)")
    assert (5, 3) in sizes(compacted(model))
    assert difference(model, X) < TOLERANCE


def test_a_norm_that_lets_anything_go_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(TEXT.replace("NORM", "n = LpNormalization<axis=-1, p=2>(h)"), w1=W1 + 1, b1=B1, w2=closed_rows())
    assert difference(model, X) < TOLERANCE
    monkeypatch.setattr(
        layer_norm.Normalised, "require", lambda self, live, facts: setattr(self, "_removable", np.ones(8, bool))
    )
    assert difference(model, X) > 0.01


def test_half_precision_takes_its_statistics_in_float32() -> None:
    # in float16 the mean square of numbers around 300 would be infinite
    half = {name: value.astype(np.float16) for name, value in {"w1": 100 * W1, "s": SCALE, "b": BIAS, "w2": W2}.items()}
    text = """(float16[N,6] x) => (float16[N,3] y) {
        h = MatMul(x, w1)
        n = LayerNormalization<axis=-1, epsilon=0.25>(h, s, b)
        y = MatMul(n, w2)
    }"""
    made = build(text, **half)
    compact_model = compacted(made)
    assert (6, 6) in sizes(compact_model)
    w1, scale, bias, w2 = (value.astype(np.float64) for value in half.values())
    h = X.astype(np.float16).astype(np.float64) @ w1
    centred = h - h.mean(axis=1, keepdims=True)
    expected = (centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 0.25) * scale + bias) @ w2
    # rounding of the inputs and of sums of eight float16 numbers about 4 in size
    np.testing.assert_allclose(run(compact_model, X.astype(np.float16)), expected, rtol=0, atol=0.03)
