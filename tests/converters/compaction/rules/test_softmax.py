"""Softmax keeps its axis; a constant along another axis comes out even."""

from __future__ import annotations

import numpy as np
import pytest
from rule_case import TOLERANCE, build, compacted, difference, sizes, with_rule

from converters.compaction.rules.elementwise import relate_elementwise

R = np.random.default_rng(3)
W1, W2 = R.normal(size=(6, 8)), R.normal(size=(8, 3))
W1[:, [1, 4, 6]] = 0
X = R.normal(size=(2, 5, 6))


def model(operator: str, opset: int = 20):
    text = f"(double[N,5,6] x) => (double[N,5,3] y) {{ h = MatMul(x, w1) p = {operator}(h) y = MatMul(p, w2) }}"
    return build(text, opset, w1=W1, w2=W2)


@pytest.mark.parametrize("operator", ["Softmax<axis=-1>", "LogSoftmax<axis=2>", "Hardmax", "Softmax"])
def test_zeros_stay_on_the_axis_of_the_softmax(operator: str) -> None:
    assert sizes(compacted(model(operator))) == [(6, 8), (8, 3)]


def test_a_softmax_that_lets_zeros_go_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    with_rule(monkeypatch, "Softmax", relate_abs)
    assert difference(model("Softmax<axis=-1>"), X) > 0.01


def relate_abs(node):
    """As if softmax were an elementwise function with f(0) = 0."""
    node.op_type = "Abs"
    relations = relate_elementwise(node)
    node.op_type = "Softmax"
    return relations


@pytest.mark.parametrize("operator", ["Softmax<axis=1>", "LogSoftmax<axis=-2>"])
def test_zeros_along_another_axis_come_out_even_and_fold_into_the_reader(operator: str) -> None:
    # 1 / 5 or -log(5) for each of the 5 positions
    assert sizes(compacted(model(operator))) == [(3,), (5, 3), (6, 5)]
    assert difference(model(operator), X) < TOLERANCE


def test_before_opset_13_all_dimensions_from_the_axis_on_are_one() -> None:
    assert sizes(compacted(model("Softmax<axis=1>", 12))) == [(6, 8), (8, 3)]
