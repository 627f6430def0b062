"""Operators with computed indices: the addressed axis stays, features beside it go."""

from __future__ import annotations

import numpy as np
import pytest
from rule_case import TOLERANCE, build, compacted, difference, sizes, with_rule

from converters.compaction.axes import axes_of
from converters.compaction.relations import Tie

R = np.random.default_rng(17)
W1, W2 = R.normal(size=(6, 8)), R.normal(size=(8, 3))
W1[:, [1, 4, 6]] = 0
X = R.normal(size=(4, 6))
PLACES = np.array([[3, 0], [1, 2]])

CASES = {
    "GatherElements": "m = GatherElements<axis=0>(h, wide)",
    "GatherND": "m = GatherND(h, rows)",
    "ScatterElements": "m = ScatterElements<axis=0>(h, wide, zeros)",
    "ScatterND": "m = ScatterND(h, rows, zeros)",
    "TopK": "m, places = TopK<axis=0>(h, two)",
    "CumSum": "m = CumSum(h, zero)",
    "Tile": "m = Tile(h, repeats)",
}


def features(middle: str, rows: int):
    text = f"(double[4,6] x) => (double[{rows},3] y) {{ h = MatMul(x, w1) {middle} y = MatMul(m, w2) }}"
    weights = {
        "wide": np.tile(PLACES[:1].T, (1, 8)), "rows": PLACES[:1].T, "zeros": np.zeros((2, 8)), "two": [2],
        "zero": np.array(0), "repeats": [2, 1],
    }  # fmt: skip
    used = {
        name: value for name, value in weights.items() if name in middle.replace(",", " ").replace(")", " ").split()
    }
    return build(text, w1=W1, w2=W2, **used)


@pytest.mark.parametrize("operator", CASES)
def test_zero_features_leave_beside_the_addressed_axis(operator: str) -> None:
    rows = {"GatherElements": 2, "GatherND": 2, "TopK": 2, "Tile": 8}.get(operator, 4)
    made = features(CASES[operator], rows)
    # a sorted column of zeros is zero too, but the rule does not claim it
    expected = 8 if operator == "TopK" else 5
    assert {(6, expected), (expected, 3)} <= set(sizes(compacted(made)))
    assert difference(made, X) < TOLERANCE


@pytest.mark.parametrize(
    ("middle", "width"),
    [
        ("m = GatherElements<axis=1>(h, spread)", 2),
        ("m = CumSum(h, one)", 8),
        ("m, places = TopK<axis=1>(h, two)", 2),
        ("m = ScatterElements<axis=1>(h, spread, new)", 8),
    ],
)
def test_zero_features_stay_on_the_addressed_axis(middle: str, width: int) -> None:
    text = f"(double[4,6] x) => (double[4,3] y) {{ h = MatMul(x, w1) {middle} y = MatMul(m, w2) }}"
    weights = {"spread": np.tile([[5, 1]], (4, 1)), "one": np.array(1), "two": [2], "new": R.normal(size=(4, 2))}
    used = {
        name: value for name, value in weights.items() if name in middle.replace(",", " ").replace(")", " ").split()
    }
    made = build(text, w1=W1, w2=W2[:width], **used)
    assert (6, 8) in sizes(compacted(made))
    assert difference(made, X) < TOLERANCE


def test_a_running_sum_tied_along_its_axis_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def tie_all(node):
        axes = zip(axes_of(node.inputs[0]), axes_of(node.outputs[0]), strict=True)
        return [Tie(node, [a], [b], lambda facts, a=a: facts.constants(a)) for a, b in axes]

    made = build(
        "(double[4,6] x) => (double[4,3] y) { h = MatMul(x, w1) m = CumSum(h, one) y = MatMul(m, w2) }",
        w1=W1, w2=W2, one=np.array(1),
    )  # fmt: skip
    assert difference(made, X) < TOLERANCE
    with_rule(monkeypatch, "CumSum", tie_all)
    assert difference(made, X) > 0.01
