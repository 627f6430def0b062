"""Constants against one unknown: one slice stands in for all of them. Expected values from NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from rule_case import TOLERANCE, Array, build, compacted, difference, run, sizes

from converters.compaction import choices
from converters.compaction.axes import Facts, Twins
from converters.compaction.rules import convolution, linear, twins

R = np.random.default_rng(23)
W1, B1, W2 = R.normal(size=(6, 8)), R.normal(size=8), R.normal(size=(8, 3))
W1[:, [1, 4, 6]] = 0  # features 1, 4 and 6 are their bias
X = R.normal(size=(5, 6))

OPERATORS: dict[str, Callable[[Array, Array], Array]] = {
    "m = Add(h, u)": lambda h, u: h + u,
    "m = Sub(h, u)": lambda h, u: h - u,
    "m = Sub(u, h)": lambda h, u: u - h,
    "m = Mul(h, u)": lambda h, u: h * u,
    "m = Mul(u, h)": lambda h, u: h * u,
    "m = Div(h, u)": lambda h, u: h / u,
    "e = Exp(h)  m = Div(u, e)": lambda h, u: u / np.exp(h),
    "d = Mul(h, u)  m = Div(d, t)": lambda h, u: h * u / (u + 3),
    "d = Mul(h, u)  e = Mul(d, t)  m = Mul(e, s)": lambda h, u: h * u * (u + 3) * SCALE,
    "d = Sub(h, u)  e = Mul(d, s)  m = Add(e, h)": lambda h, u: (h - u) * SCALE + h,
}
SCALE = R.uniform(0.5, 1.5, 8)


def against_one_unknown(middle: str) -> onnx.ModelProto:
    text = f"""(double[N,6] x) => (double[N,3] y) {{
        h0 = MatMul(x, w1)
        h = Add(h0, b1)
        n = ReduceMean<keepdims=1>(x, last)
        u = Softplus(n)
        t = Add(u, three)
        {middle}
        y = MatMul(m, w2)
    }}"""
    return build(text, w1=W1, b1=B1, w2=W2, s=SCALE, three=3.0, last=[1])


@pytest.mark.parametrize("middle", OPERATORS)
def test_one_constant_stands_in_for_all_of_them(middle: str) -> None:
    compact_model = compacted(against_one_unknown(middle))
    assert (6, 6) in sizes(compact_model)
    assert (6, 3) in sizes(compact_model)
    u = np.log1p(np.exp(X.mean(axis=1, keepdims=True)))
    expected = OPERATORS[middle](X @ W1 + B1, u) @ W2
    np.testing.assert_allclose(run(compact_model, X), expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize("middle", [text for text in OPERATORS if " m = " not in text])
def test_a_wrong_scale_is_caught(middle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = twins._made_twins
    monkeypatch.setattr(
        twins, "_made_twins", lambda *args: Twins(made(*args).scales * np.arange(1, 9), made(*args).offsets)
    )
    assert difference(against_one_unknown(middle), X) > 0.01


@pytest.mark.parametrize("middle", ["m = Add(h, u)", "m = Sub(h, u)", "m = Sub(u, h)"])
def test_a_wrong_offset_is_caught(middle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = twins._made_twins
    monkeypatch.setattr(
        twins, "_made_twins", lambda *args: Twins(made(*args).scales, made(*args).offsets * np.arange(1, 9))
    )
    assert difference(against_one_unknown(middle), X) > 0.01


MIXED = "d = Sub(h, u)  m = Mul(d, t)"  # (c - u) * t has two unknowns, u * t and t


def test_twins_with_an_offset_are_none_behind_another_unknown() -> None:
    model = against_one_unknown(MIXED)
    assert (6, 8) in sizes(compacted(model))
    assert difference(model, X) < TOLERANCE


def test_an_offset_that_is_forgotten_behind_another_unknown_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    learn = Facts.learn_twins

    def without_offsets(self: Facts, axis: object, found: Twins | None) -> None:
        learn(self, axis, None if found is None else Twins(found.scales, 0 * found.scales))  # type: ignore[arg-type]

    monkeypatch.setattr(Facts, "learn_twins", without_offsets)
    assert difference(against_one_unknown(MIXED), X) > 0.01


def across(size: str) -> onnx.ModelProto:
    """The second operand has the axis in one model, a length that is a symbol in another."""
    text = f"""(double[N,6] x, double[N,{size}] u) => (double[N,3] y) {{
        h0 = MatMul(x, w1)
        h = Add(h0, b1)
        m = Mul(h, u)
        y = MatMul(m, w2)
    }}"""
    return build(text, w1=W1, b1=B1, w2=W2)


def test_an_operand_that_may_have_the_axis_at_run_time_is_no_single_unknown() -> None:
    assert (6, 6) in sizes(compacted(across("1")))
    assert (6, 8) in sizes(compacted(across("8")))
    assert (6, 8) in sizes(compacted(across("K")))


def pixels(pad: int) -> onnx.ModelProto:
    text = f"""(double[N,6,5,5] x) => (double[N,3,A,B] y) {{
        h = Conv(x, w1, b1)
        n = ReduceMean<keepdims=1>(x, first)
        u = Softplus(n)
        d = Sub(h, u)
        m = Mul(d, s)
        y = Conv<pads=[{pad},{pad},{pad},{pad}]>(m, w2, b2)
    }}"""
    r = np.random.default_rng(29)
    return build(
        text, w1=W1.T[:, :, None, None], b1=B1, w2=r.normal(size=(3, 8, 2, 2)), b2=r.normal(size=3),
        s=SCALE[:, None, None], first=[1],
    )  # fmt: skip


def test_a_convolution_without_a_border_lets_one_twin_stand_in_for_all() -> None:
    model = pixels(pad=0)
    assert (3, 6, 2, 2) in sizes(compacted(model))
    assert difference(model, np.random.default_rng(31).normal(size=(2, 6, 5, 5))) < TOLERANCE


def test_a_convolution_that_leaves_out_the_weights_of_twins_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "merge_twins", lambda weight, inner, going, *rest: (weight, np.zeros((3, 2, 2))))
    assert difference(pixels(pad=0), np.random.default_rng(31).normal(size=(2, 6, 5, 5))) > 0.01


def test_behind_a_border_twins_stay() -> None:
    # their offsets are not there where the border's zeros are
    model = pixels(pad=1)
    assert (3, 8, 2, 2) in sizes(compacted(model))
    assert difference(model, np.random.default_rng(31).normal(size=(2, 6, 5, 5))) < TOLERANCE


def with_huge_offset() -> onnx.ModelProto:
    """c + u with c = 1e9, 1, 2: the stand-in must not be the first, beside which u is rounding."""
    b1 = B1.astype(np.float32)
    b1[[1, 4, 6]] = 1e9, 1, 2
    w2 = W2.astype(np.float32)
    w2[1] = 0.0
    w2[1, 0] = 1e-9  # the huge one is heard as softly as the others
    text = """(float[N,6] x) => (float[N,3] y) {
        h0 = MatMul(x, w1)
        h = Add(h0, b1)
        n = ReduceMean<keepdims=1>(x, last)
        m = Add(h, n)
        y = MatMul(m, w2)
    }"""
    return build(text, w1=W1.astype(np.float32), b1=b1, w2=w2, last=[1])


def test_the_twin_with_the_smallest_offset_stands_in() -> None:
    model = with_huge_offset()
    assert (6, 6) in sizes(compacted(model))
    # float32 sums of eight terms about 1 in size
    assert difference(model, X.astype(np.float32)) < 1e-6


def test_a_stand_in_whose_offset_drowns_the_unknown_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices.np, "argmin", np.argmax)
    monkeypatch.setattr(choices, "_LARGEST_OFFSET", np.inf)
    assert difference(with_huge_offset(), X.astype(np.float32)) > 1e-3


def test_a_product_that_leaves_out_the_weights_of_twins_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "merge_twins", lambda weight, inner, going, *rest: (weight, np.zeros(3)))
    assert difference(against_one_unknown("m = Mul(h, u)"), X) > 0.01
