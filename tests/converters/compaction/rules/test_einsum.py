"""Einsum: letters of the result are tied, summed letters contract."""

from __future__ import annotations

import numpy as np
import pytest
from rule_case import TOLERANCE, build, compacted, difference, sizes, with_rule

from converters.compaction.relations import Tie
from converters.compaction.rules.common import axis_of
from converters.compaction.rules.einsum import parse_equation

R = np.random.default_rng(13)
WQ, WK, W2 = R.normal(size=(6, 8)), R.normal(size=(6, 8)), R.normal(size=(8, 3))
WQ[:, [1, 4, 6]] = 0
X = R.normal(size=(2, 5, 6))


def test_an_ellipsis_stands_for_dimensions_counted_from_its_end() -> None:
    assert parse_equation("...ij, jk -> ...ik", [4, 2]) == (
        [["...2", "...1", "i", "j"], ["j", "k"]],
        ["...2", "...1", "i", "k"],
    )


def test_without_an_arrow_the_letters_that_occur_once_are_the_result_in_order() -> None:
    assert parse_equation("ba,bc", [2, 2]) == ([["b", "a"], ["b", "c"]], ["a", "c"])


def test_an_equation_that_does_not_fit_the_ranks_is_refused() -> None:
    assert parse_equation("ij,jk->ik", [3, 2]) is None


def test_a_zero_in_a_summed_letter_takes_the_other_operand_with_it() -> None:
    text = """(double[N,5,6] x) => (double[N,5,5] y) {
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        y = Einsum<equation="bsd,btd->bst">(q, k)
    }"""
    made = build(text, wq=WQ, wk=WK)
    assert sizes(compacted(made)) == [(6, 5), (6, 5)]
    assert difference(made, X) < TOLERANCE


LINEAR = """(double[N,5,6] x) => (double[N,5,3] y) {
    h = Einsum<equation="bsi,io->bso">(x, wq)
    g = Mul(h, gate)
    y = Einsum<equation="...o,op->...p">(g, w2)
}"""


def test_a_gate_between_two_einsums_folds_away() -> None:
    gate = np.array([0.5, 0, 2, 1, 0, 3, 0, 1])
    made = build(LINEAR, wq=WK, gate=gate, w2=W2)
    compact_model = compacted(made)
    assert sizes(compact_model) == [(5, 3), (6, 5)]
    assert [node.op_type for node in compact_model.graph.node] == ["Einsum", "Einsum"]
    assert difference(made, X) < TOLERANCE


def test_a_diagonal_is_kept_whole() -> None:
    text = """(double[N,5,6] x) => (double[N,8] y) {
        h = MatMul(x, w)
        r = Reshape(h, shape)
        y = Einsum<equation="biik->bk">(r)
    }"""
    w = np.zeros((6, 32))
    w[:, 8:] = R.normal(size=(6, 24))
    made = build(text.replace("double[N,5,6]", "double[N,6]"), w=w, shape=[-1, 2, 2, 8])
    assert sizes(compacted(made)) == [(6, 32)]


def test_a_summed_letter_of_which_anything_goes_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    made = build(LINEAR.replace("g = Mul(h, gate)", "g = Identity(h)"), wq=WK, w2=W2)

    def only_tied(node):
        data, weight = node.inputs
        if weight.name != "w2":
            return [Tie(node, [axis_of(weight, 1)], [axis_of(node.outputs[0], 2)])]
        return [Tie(node, [axis_of(data, 2), axis_of(weight, 0)], [])]

    assert difference(made, X) < TOLERANCE
    with_rule(monkeypatch, "Einsum", only_tied)
    assert difference(made, X) > 0.01
