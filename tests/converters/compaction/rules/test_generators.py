"""Operators that make numbers from shapes."""

from __future__ import annotations

import numpy as np
from rule_case import TOLERANCE, build, compacted, difference

R = np.random.default_rng(19)
X = R.normal(size=(4, 6))


def test_a_computed_block_of_zeros_leaves_a_sum() -> None:
    text = """(double[N,6] x) => (double[N,3] y) {
        h = MatMul(x, w1)
        s = Shape(h)
        z = ConstantOfShape(s)
        c = CastLike(z, h)
        a = Add(h, c)
        y = MatMul(a, w2)
    }"""
    made = build(text, w1=R.normal(size=(6, 8)), w2=R.normal(size=(8, 3)))
    assert [node.op_type for node in compacted(made).graph.node] == ["MatMul", "MatMul"]
    assert difference(made, X) < TOLERANCE


def test_places_made_by_a_range_stay() -> None:
    text = """(double[N,6] x) => (double[N,8] y) {
        h = MatMul(x, w1)
        p = Range(zero, eight, one)
        y = Add(h, p)
    }"""
    made = build(text, w1=np.zeros((6, 8)), zero=0.0, eight=8.0, one=1.0)
    assert difference(made, X) < TOLERANCE
