"""Does each evaluation rule give the values that its authors' code gives, with exact zeros where they belong?"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from l0runtime.errors import GateParameterError
from l0runtime.gates import HardConcrete, closing_threshold, evaluate_gates, opening_threshold
from l0runtime.gates.evaluation import RULES, EvaluationRule, check_rule

DEFAULTS = HardConcrete()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def evaluate_with_numpy(a: np.ndarray, rule: str, beta: float, gamma: float, zeta: float) -> np.ndarray:
    """The three rules as their papers' code writes them, in float64."""
    if rule == "paper":
        return np.clip(sigmoid(a) * (zeta - gamma) + gamma, 0, 1)
    if rule == "median":
        return np.clip(sigmoid(a / beta) * (zeta - gamma) + gamma, 0, 1)
    mask = sigmoid(a / beta * 0.8)
    zeros = round(len(a) - sigmoid(a - beta * math.log(-gamma / zeta)).sum())
    mask[np.argsort(mask, kind="stable")[:zeros]] = 0
    return mask


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("constants", [(2 / 3, -0.1, 1.1), (1.0, -0.1, 1.1), (0.33, -0.2, 1.3)])
def test_each_rule_follows_its_formula(rule: EvaluationRule, constants: tuple[float, float, float]) -> None:
    a = np.random.default_rng(0).normal(-1, 2, 300)
    expected = evaluate_with_numpy(a, rule, *constants)
    found = evaluate_gates(torch.from_numpy(a), HardConcrete(*constants), rule).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_array_equal(found == 0, expected == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("rule", "closing", "opening"),
    # by hand: log(0.1 / 1.1) = -log 11, and the same times 2 / 3; the interval is symmetric about 1 / 2
    [("paper", -math.log(11), math.log(11)), ("median", -math.log(11) * 2 / 3, math.log(11) * 2 / 3)],
)
def test_a_gate_is_closed_up_to_its_threshold_and_open_beyond(
    rule: EvaluationRule, closing: float, opening: float, dtype: torch.dtype
) -> None:
    assert closing_threshold(DEFAULTS, rule) == pytest.approx(closing, rel=1e-14)
    assert opening_threshold(DEFAULTS, rule) == pytest.approx(opening, rel=1e-14)
    at = torch.tensor(closing_threshold(DEFAULTS, rule), dtype=dtype)
    step = 1e-6  # beyond float32's rounding of a value near 2.4, which is 2.4e-7
    below, above = at - step, at + step
    z = evaluate_gates(torch.stack([below, at, above]), DEFAULTS, rule)
    assert z[0] == 0
    assert z[1] == 0
    assert 0 < z[2] < 1e-5
    full = torch.tensor(opening, dtype=dtype)
    z = evaluate_gates(torch.stack([full - 1e-5, full + step]), DEFAULTS, rule)
    assert 1 - 1e-4 < z[0] < 1
    assert z[1] == 1


def test_the_documented_thresholds() -> None:
    assert closing_threshold(DEFAULTS, "paper") == pytest.approx(-2.398, abs=5e-4)
    assert closing_threshold(DEFAULTS, "median") == pytest.approx(-1.599, abs=5e-4)


def test_top_k_never_opens_a_gate_fully() -> None:
    z = evaluate_gates(torch.full((4,), math.log(100)), DEFAULTS, "top-k")
    assert z.max().item() == pytest.approx(0.996, abs=5e-4)


def test_top_k_closes_equal_gates_in_the_order_of_their_index() -> None:
    # E[L0] = 4 sigmoid(-1.5986 + 1.5986) = 2, so two of the four equal gates close
    z = evaluate_gates(torch.full((4,), DEFAULTS.beta * math.log(0.1 / 1.1)), DEFAULTS, "top-k")
    assert (z == 0).tolist() == [True, True, False, False]


def test_the_rules_keep_different_gates_of_the_same_network() -> None:
    a = np.random.default_rng(5).normal(-2, 1.5, 500)
    counts = {rule: int((evaluate_gates(torch.from_numpy(a), DEFAULTS, rule) != 0).sum()) for rule in RULES}
    by_hand = {
        "paper": int((a > -math.log(11)).sum()),
        "median": int((a > -math.log(11) * 2 / 3).sum()),
        "top-k": round(sigmoid(a + math.log(11) * 2 / 3).sum()),
    }
    assert counts == by_hand
    assert counts["paper"] > counts["top-k"] > counts["median"]


@pytest.mark.parametrize("rule", ["paper", "median"])
def test_gradient_reaches_the_undecided_gates_only(rule: EvaluationRule) -> None:
    a = torch.tensor([-4.0, 0.3, 4.0], requires_grad=True)
    evaluate_gates(a, DEFAULTS, rule).sum().backward()
    assert a.grad is not None
    assert a.grad[0] == 0
    assert a.grad[1] > 0.1
    assert a.grad[2] == 0


def test_top_k_has_no_threshold() -> None:
    with pytest.raises(GateParameterError) as caught:
        closing_threshold(DEFAULTS, "top-k")
    assert str(caught.value) == "the top-k rule closes gates by rank; it has no threshold on log_alpha."


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(GateParameterError) as caught:
        check_rule("mode")
    assert str(caught.value) == "evaluation rule is 'mode'; expected one of paper, median, top-k."
