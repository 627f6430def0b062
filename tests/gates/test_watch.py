"""Are the known failures of training with gates announced, and a healthy run left in peace?"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from l0runtime.gates import Gate, GatedLinear, GateWarning, GateWatch


def watched(log_alpha: float = 2.0, steps: int = 100) -> tuple[GatedLinear, GateWatch]:
    layer = GatedLinear(30, 2)
    with torch.no_grad():
        layer.gate.log_alpha.fill_(log_alpha)
    return layer, GateWatch(nn.Sequential(layer), steps)


def move(layer: GatedLinear, to: float) -> None:
    with torch.no_grad():
        layer.gate.log_alpha.fill_(to)


def test_gates_that_are_too_slow_to_ever_close_are_announced() -> None:
    layer, watch = watched()
    move(layer, 1.5)  # 0.5 in 25 steps; 3.9 are left, which takes 195 more, and there are 75
    (problem,) = watch.problems(25)
    assert problem.kind == "slow"
    assert problem.message == (
        "No gate will close: after 25 of 100 steps the nearest, in 0, has log_alpha 1.50 and closes at -2.40; at this "
        "pace it would take 195 more. Give the gates a larger learning rate of their own (param_groups), or raise the "
        "penalty."
    )


def test_gates_that_move_fast_enough_or_too_early_to_tell_are_not() -> None:
    layer, watch = watched()
    move(layer, 0.5)  # 1.5 in 25 steps; 2.9 are left: 48 more
    assert watch.problems(25) == []
    move(layer, 1.99)
    assert watch.problems(24) == []


def test_gates_that_move_up_never_close() -> None:
    layer, watch = watched()
    move(layer, 2.5)
    (problem,) = watch.problems(50)
    assert "at this pace none of them has moved down." in problem.message


def test_a_run_with_a_closed_gate_is_not_slow() -> None:
    layer, watch = watched()
    with torch.no_grad():
        layer.gate.log_alpha[0] = -3.0
    assert watch.problems(50) == []


def test_a_layer_that_is_about_to_die_is_named() -> None:
    layer, watch = watched()
    with torch.no_grad():
        layer.gate.log_alpha.fill_(-4.6)
        layer.gate.log_alpha[0] = 3.0
    (problem,) = watch.problems(10)
    assert (problem.kind, problem.name) == ("dying", "0")
    assert problem.message == (
        "0: 1 of 30 units are left and 7.9 % are expected to be open; without units it gives a constant. Lower the "
        "penalty or its share for this layer, or warm up longer."
    )


def test_undecided_gates_are_announced_at_the_end_alone() -> None:
    layer, watch = watched()
    with torch.no_grad():
        layer.gate.log_alpha[:4] = -1.0  # P(z != 0) = 0.645
        layer.gate.log_alpha[4] = -4.5  # 0.052
    assert watch.problems(99) == []
    (problem,) = watch.problems(100)
    assert problem.message == (
        "4 of 30 gates are undecided at the end (0.1 < P(z != 0) < 0.9), so the evaluation rule decides what the "
        "network computes. Train longer, or fix the gates and fine-tune (TargetCost.settle, freeze)."
    )


def test_each_problem_is_told_once() -> None:
    _, watch = watched()
    with pytest.warns(GateWarning):
        watch.warn(50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.warn(60)


def test_a_rule_without_a_threshold_is_not_watched() -> None:
    assert GateWatch(nn.Sequential(Gate(4, rule="top-k")), 10).problems(10) == []


def test_gates_that_were_removed_count_as_closed() -> None:
    model = nn.Sequential(GatedLinear(8, 4))
    watch = GateWatch(model, 100)
    gate = model[0].gate
    kept = torch.arange(5)
    gate.log_alpha.data = gate.log_alpha.data[kept]
    gate.size = 5
    watch.narrow({"0": kept})
    assert watch.start["0"].shape == (5,)
    assert not [problem for problem in watch.problems(50) if problem.kind == "slow"]
