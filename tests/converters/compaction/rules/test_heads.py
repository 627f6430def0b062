"""Fused attention loses whole heads; expected values from attention written out in NumPy."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from rule_case import TOLERANCE, Array, build, compacted, difference, run, sizes, with_rule, without_fixup

from converters.compaction.axes import axes_of
from converters.compaction.relations import Tie
from converters.compaction.rules import heads

R = np.random.default_rng(11)
WQ, WK, WV, WO = (R.normal(size=shape) / 2 for shape in ((6, 12), (6, 12), (6, 12), (12, 6)))
X = R.normal(size=(2, 5, 6))


def attention(wv: Array, wo: Array, kv_heads: int = 4, wk: Array = WK) -> onnx.ModelProto:
    text = f"""(double[N,5,6] x) => (double[N,5,6] y) {{
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        a = Attention<q_num_heads=4, kv_num_heads={kv_heads}>(q, k, v)
        y = MatMul(a, wo)
    }}"""
    return build(text, 23, wq=WQ, wk=wk, wv=wv, wo=wo)


def attention_by_hand(wk: Array, wv: Array, wo: Array, kv_heads: int) -> Array:
    def split(w: Array, heads: int) -> Array:
        return (X @ w).reshape(2, 5, heads, 3).transpose(0, 2, 1, 3)

    q, k, v = split(WQ, 4), split(wk, kv_heads), split(wv, kv_heads)
    k, v = (np.repeat(a, 4 // kv_heads, axis=1) for a in (k, v))
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(3)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    context = p / p.sum(axis=-1, keepdims=True) @ v
    return context.transpose(0, 2, 1, 3).reshape(2, 5, 12) @ wo


def without(matrix: Array, axis: int, indices: range) -> Array:
    changed = matrix.copy()
    np.moveaxis(changed, axis, 0)[list(indices)] = 0
    return changed


def test_a_head_that_nobody_reads_goes_with_its_queries_keys_and_values() -> None:
    wo = without(WO, 0, range(3, 6))
    compact_model = compacted(attention(WV, wo))
    assert sizes(compact_model) == [(6, 9), (6, 9), (6, 9), (9, 6)]
    np.testing.assert_allclose(run(compact_model, X), attention_by_hand(WK, WV, wo, 4), rtol=0, atol=TOLERANCE)


def test_a_head_whose_values_are_zero_goes() -> None:
    wv = without(WV, 1, range(3))
    compact_model = compacted(attention(wv, WO))
    assert sizes(compact_model) == [(6, 9), (6, 9), (6, 9), (9, 6)]
    np.testing.assert_allclose(run(compact_model, X), attention_by_hand(WK, wv, WO, 4), rtol=0, atol=TOLERANCE)


def test_a_head_with_one_live_value_stays() -> None:
    wv = without(WV, 1, range(2))
    assert sizes(compacted(attention(wv, WO))) == [(6, 12), (6, 12), (6, 12), (12, 6)]


def test_a_key_head_goes_with_all_of_its_query_heads() -> None:
    wo = without(without(WO, 0, range(6)), 0, range(6, 9))  # query heads 0, 1 (all of key head 0) and 2
    compact_model = compacted(attention(WV[:, :6], wo, 2, WK[:, :6]))
    assert sizes(compact_model) == [(6, 3), (6, 3), (6, 6), (6, 6)]
    expected = attention_by_hand(WK[:, :6], WV[:, :6], wo, 2)
    np.testing.assert_allclose(run(compact_model, X), expected, rtol=0, atol=TOLERANCE)


def features(matrix: Array, axis: int, heads: list[int], feature: int) -> Array:
    """Zeros at one of the 3 features of each of these heads."""
    changed = matrix.copy()
    np.moveaxis(changed, axis, 0)[[3 * head + feature for head in heads]] = 0
    return changed


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_feature_goes_when_it_adds_nothing_in_any_head(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    # feature 2: the query is zero in heads 0 and 1, the key in heads 2 and 3; feature 1 of the values is zero or unread
    wq, wk = features(WQ, 1, [0, 1], 2), features(WK, 1, [2, 3], 2)
    wv, wo = features(WV, 1, [0, 1, 2, 3], 1), features(WO, 0, [3], 1)
    text = """(TYPE[N,5,6] x) => (TYPE[N,5,6] y) {
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        a = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v)
        y = MatMul(a, wo)
    }""".replace("TYPE", "double" if dtype is np.float64 else "float")
    made = build(text, 23, **{k: w.astype(dtype) for k, w in {"wq": wq, "wk": wk, "wv": wv, "wo": wo}.items()})
    assert sizes(compacted(made)) == [(6, 8), (6, 8), (6, 8), (8, 6)]
    assert difference(made, X.astype(dtype)) < (TOLERANCE if dtype is np.float64 else 1e-5)
    monkeypatch.setattr(heads, "_keep_scale", lambda *arguments: None)
    assert difference(made, X.astype(dtype)) > 0.01


def test_a_feature_that_counts_in_one_head_stays_in_all() -> None:
    wq, wv = features(WQ, 1, [0, 1, 2], 2), features(WV, 1, [1, 2, 3], 0)
    text = """(double[N,5,6] x) => (double[N,5,6] y) {
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        a = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v)
        y = MatMul(a, wo)
    }"""
    made = build(text, 23, wq=wq, wk=WK, wv=wv, wo=WO)
    assert sizes(compacted(made)) == [(6, 12), (6, 12), (6, 12), (12, 6)]
    assert difference(made, X) < TOLERANCE


def test_features_of_separate_heads_go_with_grouped_queries() -> None:
    # [N, H, S, d]: 4 query heads share 2 key heads; feature 0 of every key, feature 2 of every value
    text = """(double[N,5,6] x) => (double[N,5,6] y) {
        q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
        qr = Reshape(q, four) kr = Reshape(k, two) vr = Reshape(v, two)
        qt = Transpose<perm=[0,2,1,3]>(qr) kt = Transpose<perm=[0,2,1,3]>(kr) vt = Transpose<perm=[0,2,1,3]>(vr)
        a = Attention(qt, kt, vt)
        at = Transpose<perm=[0,2,1,3]>(a)
        ar = Reshape(at, flat)
        y = MatMul(ar, wo)
    }"""
    made = build(
        text, 23, wq=WQ, wk=features(WK, 1, [0, 1], 0)[:, :6], wv=features(WV, 1, [0, 1], 2)[:, :6], wo=WO,
        four=[0, 0, 4, 3], two=[0, 0, 2, 3], flat=[0, 0, 12],
    )  # fmt: skip
    assert sizes(compacted(made)) == [(6, 4), (6, 4), (6, 8), (8, 6)]
    assert difference(made, X) < TOLERANCE


def test_heads_that_are_not_counted_anew_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    without_fixup(monkeypatch, "Attention")
    with pytest.raises(onnx.shape_inference.InferenceError, match="Inferred shape and existing shape differ"):
        compacted(attention(WV, without(WO, 0, range(6))))


def test_features_that_leave_heads_one_by_one_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def tie_features(node):
        return [Tie(node, [axes_of(value)[-1] for value in node.inputs], [axes_of(node.outputs[0])[-1]])]

    wo = WO.copy()
    wo[[0, 4, 8, 11]] = 0  # one feature of each head
    assert difference(attention(WV, wo), X) < TOLERANCE
    with_rule(monkeypatch, "Attention", tie_features)
    assert difference(attention(WV, wo), X) > 0.01


def test_a_rotary_embedding_loses_whole_heads() -> None:
    # the operator has no float64, so the tolerance is that of float32
    text = """(float[N,5,6] x) => (float[N,5,2] y) {
        q = MatMul(x, wq)
        r = RotaryEmbedding<num_heads=3>(q, cos, sin, place)
        y = MatMul(r, wo)
    }"""
    angle = R.normal(size=(5, 2))
    made = build(
        text, 23, wq=WQ.astype(np.float32), cos=np.cos(angle).astype(np.float32), place=np.tile(np.arange(5), (2, 1)),
        sin=np.sin(angle).astype(np.float32), wo=without(WO, 0, range(3, 8)).astype(np.float32)[:, :2],
    )  # fmt: skip
    # head 1 of 3 is features 4 to 7; feature 3 is unread too, but belongs to a head that stays
    assert sizes(compacted(made)) == [(5, 2), (5, 2), (6, 8), (8, 2)]
    assert difference(made, X.astype(np.float32)) < 1e-5
