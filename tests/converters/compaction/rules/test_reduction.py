"""Constants that leave a reduction; expected values from NumPy over all entries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from rule_case import TOLERANCE, Array, build, compacted, difference, run, sizes, without_fixup

from converters.compaction.rules import reduction

R = np.random.default_rng(11)
W1, B1, W2 = R.normal(size=(6, 8)), R.normal(size=8), R.normal(size=(3, 4))
W1[:, [1, 4, 6]] = 0  # features 1, 4 and 6 are their bias
X = R.normal(size=(5, 6))

KINDS: dict[str, Callable[[Array], Array]] = {
    "ReduceMean": lambda h: h.mean(axis=1, keepdims=True),
    "ReduceSum": lambda h: h.sum(axis=1, keepdims=True),
    "ReduceL1": lambda h: np.abs(h).sum(axis=1, keepdims=True),
    "ReduceSumSquare": lambda h: (h**2).sum(axis=1, keepdims=True),
    "ReduceMax": lambda h: h.max(axis=1, keepdims=True),
    "ReduceMin": lambda h: h.min(axis=1, keepdims=True),
}


def reduced(kind: str, b1: Array = B1) -> onnx.ModelProto:
    text = f"""(double[N,6] x) => (double[N,1] y) {{
        h0 = MatMul(x, w1)
        h = Add(h0, b1)
        y = {kind}<keepdims=1>(h, last)
    }}"""
    return build(text, w1=W1, b1=b1, last=[1])


@pytest.mark.parametrize("kind", KINDS)
def test_constants_go_and_their_share_is_added(kind: str) -> None:
    compact_model = compacted(reduced(kind))
    assert (6, 5) in sizes(compact_model)
    np.testing.assert_allclose(run(compact_model, X), KINDS[kind](X @ W1 + B1), rtol=0, atol=TOLERANCE * 100)


@pytest.mark.parametrize("kind", ["ReduceMax", "ReduceMin"])
def test_a_constant_that_wins_against_all_others_is_still_seen(kind: str) -> None:
    b1 = B1.copy()
    b1[4] = 100 if kind == "ReduceMax" else -100
    compact_model = compacted(reduced(kind, b1))
    assert (6, 5) in sizes(compact_model)
    assert (run(compact_model, X) == b1[4]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_that_is_not_added_is_caught(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduction, "_gone", lambda edit, relation: np.zeros(0))
    b1 = B1.copy()
    b1[4] = 100 if kind == "ReduceMax" else -100
    assert difference(reduced(kind, b1), X) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_reduction_of_the_survivors_alone_is_caught(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_fixup(monkeypatch, kind)
    b1 = B1.copy()
    b1[4] = 100 if kind == "ReduceMax" else -100
    assert difference(reduced(kind, b1), X) > 0.01


@pytest.mark.parametrize("kind", ["ReduceL2", "ReduceLogSumExp", "ReduceProd"])
def test_constants_stay_where_adding_their_share_takes_more_than_one_operator(kind: str) -> None:
    model = reduced(kind)
    assert (6, 8) in sizes(compacted(model))
    assert difference(model, X) < TOLERANCE


def along_two_axes(kind: str) -> onnx.ModelProto:
    """Rows 0, 2 and columns 1, 4 of t hold one number each, the same one where they cross."""
    text = f"""(double[N,6,3] x) => (double[N,1,1] y) {{
        h = MatMul(w1, x)
        t0 = MatMul(h, w2)
        t1 = Mul(t0, rows)
        t2 = Mul(t1, columns)
        t = Cos(t2)
        y = {kind}<keepdims=1>(t, axes)
    }}"""
    rows, columns = np.ones((5, 1)), np.ones(6)
    rows[[0, 2]] = columns[[1, 4]] = 0
    r = np.random.default_rng(12)
    return build(
        text, w1=r.normal(size=(5, 6)), w2=r.normal(size=(3, 6)), rows=rows, columns=columns, axes=[1, 2]
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_constants_along_two_axes_count_once_where_they_cross(kind: str) -> None:
    model = along_two_axes(kind)
    assert sizes(compacted(model)) == [(3, 4), (3, 6)]
    assert difference(model, np.random.default_rng(13).normal(size=(4, 6, 3))) < TOLERANCE


def test_the_norm_of_a_constant_over_static_space_is_known() -> None:
    text = """(double[N,6,5] x) => (double[N,3] y) {
        h0 = MatMul(w1, x)
        h = Add(h0, b1)
        n = ReduceL2<keepdims=0>(h, last)
        y = MatMul(n, w2)
    }"""
    w2 = R.normal(size=(8, 3))
    model = build(text, w1=W1.T, b1=B1[:, None], w2=w2, last=[2])
    compact_model = compacted(model)
    assert (5, 6) in sizes(compact_model)
    assert (5, 3) in sizes(compact_model)
    x = R.normal(size=(4, 6, 5))
    expected = np.sqrt(((W1.T @ x + B1[:, None]) ** 2).sum(axis=2)) @ w2
    np.testing.assert_allclose(run(compact_model, x), expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())
