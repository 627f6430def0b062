"""Does a target drive the compact model's cost to where it was asked for, and refuse what cannot be?"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gates.attachable import resnet
from l0runtime.errors import NoGateError, OptionError, UnsupportedModelError
from l0runtime.gates import AttachedGates, CostModel, GateSpec, HardConcrete, TargetCost, attach, param_groups


def gated(**options) -> tuple[nn.Module, AttachedGates]:
    model, inputs = resnet()
    return model, attach(model, GateSpec(kinds=("units", "stream"), **options), inputs)


def pixels_times(stream: float, first: float, second: float) -> float:
    """Multiply-accumulates of the small network by hand: 36 pixels, 3x3 kernels, 18 in the classifier."""
    return 36 * 9 * (2 * stream + 2 * stream * first + 2 * stream * second) + 3 * stream


def test_the_target_falls_linearly_after_the_warm_up() -> None:
    model, _ = gated()
    objective = TargetCost(model, 0.5, 100, warm_up=0.1, ramp=0.4)
    assert [objective.target_of(step) for step in (0, 10, 30, 50, 99)] == pytest.approx([1, 1, 0.75, 0.5, 0.5])


def test_the_multiplier_integrates_the_error_of_the_kept_cost_and_restarts_when_the_target_is_met() -> None:
    model, gates = gated()
    objective = TargetCost(model, 0.5, 100, warm_up=0, ramp=0.02, strength=10)
    first, second = objective(), objective()
    # step 0 asks for 1 and all is kept; step 1 asks for 0.75: the multiplier is 10 / 100 * 0.25, the rest proportional
    assert float(first.detach()) == 0
    expected = float(gates.costs["macs"].fraction(gates.shares()).detach())
    assert objective.multiplier == pytest.approx(0.025)
    assert float(second.detach()) == pytest.approx(expected * (0.025 + 10 / 10 * 0.25))
    with torch.no_grad():
        gates.gate("stem.stream").log_alpha[:4] = -3.0
    third = objective()
    assert objective.multiplier == 0
    assert float(third.detach()) < 0  # too small already: gates are pushed open


def test_nothing_presses_during_the_warm_up() -> None:
    model, gates = gated()
    objective = TargetCost(model, 0.5, 100, warm_up=0.5, ramp=0.5)
    with torch.no_grad():
        gates.gate("stem.stream").log_alpha[:4] = -3.0
    assert float(objective().detach()) == 0


def test_plain_torch_training_reaches_the_target_and_settling_meets_it() -> None:
    """A loss that wants every gate open equally: the constraint alone decides."""
    model, gates = gated()
    torch.manual_seed(0)
    objective = TargetCost(model, 0.4, 200)
    optimizer = torch.optim.Adam(param_groups(model, 1e-3, 0.1))
    for _ in range(200):
        optimizer.zero_grad()
        loss = -0.01 * gates.shares().sum() + objective()
        loss.backward()
        optimizer.step()
        for gate in gates:
            gate.clamp_()
    assert objective.kept() < 0.6
    objective.settle()
    kept = objective.kept()
    sizes = [gate.kept_count() for gate in gates]
    first, second, stream = sizes
    assert kept == pytest.approx(pixels_times(stream, first, second) / pixels_times(6, 4, 5), rel=1e-5)
    assert kept <= 0.4
    # one more unit anywhere would be too much
    for more in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        widths = [min(size + extra, full) for size, extra, full in zip(sizes, more, (4, 5, 6), strict=True)]
        if widths != sizes:
            assert pixels_times(widths[2], widths[0], widths[1]) / pixels_times(6, 4, 5) > 0.4


def test_settling_keeps_the_gates_of_highest_rank_and_freezes_all() -> None:
    model, gates = gated()
    with torch.no_grad():
        for gate in gates:
            gate.log_alpha.copy_(torch.linspace(1, 2, gate.size))
    objective = TargetCost(model, 0.5, 10)
    objective.settle()
    for gate in gates:
        values = gate.values() != 0
        assert values.tolist() == sorted(values.tolist())  # the later, the higher log_alpha was
        assert gate.is_frozen
    assert objective.kept() <= 0.5


def test_settling_reopens_gates_where_too_few_are_left_and_leaves_one_of_each_vector() -> None:
    model, gates = gated()
    with torch.no_grad():
        for gate in gates:
            gate.log_alpha.copy_(torch.linspace(-4, -3, gate.size))
    objective = TargetCost(model, 0.5, 10)
    objective.settle()
    assert 0.4 < objective.kept() <= 0.5
    assert all(gate.kept_count() >= 1 for gate in gates)


def test_a_resumed_objective_goes_on_where_it_was() -> None:
    model, _ = gated()
    objective, twin = TargetCost(model, 0.5, 100), TargetCost(model, 0.5, 100)
    for _ in range(30):
        objective()
    twin.load_state_dict(objective.state_dict())
    assert torch.equal(twin(), objective())
    assert twin.state_dict() == objective.state_dict()


def test_a_target_below_the_reach_of_the_gates_is_refused_with_the_reason() -> None:
    model, _ = gated()
    with pytest.raises(OptionError) as caught:
        TargetCost(model, 0.03, 100)
    lowest = 100 * pixels_times(1, 1, 1) / pixels_times(6, 4, 5)
    assert str(caught.value) == (
        f"TargetCost: a target of 3.0 % of the macs cannot be reached; with one unit left at each place {lowest:.1f} % "
        "stay, 0.0 % in what no gate acts on. Raise the target or gate more of the network."
    )


def test_the_clamp_bounds_the_target_under_the_top_k_rule() -> None:
    model, _ = gated(rule="top-k")
    closed = 1 / (1 + math.exp(math.log(100) - 2 / 3 * math.log(11)))  # P(z != 0) at log_alpha = -log(100)
    lowest = pixels_times(6 * closed, 4 * closed, 5 * closed) / pixels_times(6, 4, 5)
    with pytest.raises(OptionError) as caught:
        TargetCost(model, 0.001, 100)
    assert str(caught.value) == (
        "TargetCost: a target of 0.1 % of the macs cannot be reached; with every log_alpha at its lower limit "
        f"{100 * lowest:.1f} % are expected to stay. Raise the target or gate more of the network."
    )


def test_gates_whose_threshold_lies_beyond_the_clamp_are_refused() -> None:
    model, _ = gated(constants=HardConcrete(gamma=-0.001, zeta=1.001))
    with pytest.raises(OptionError) as caught:
        TargetCost(model, 0.5, 100)
    assert str(caught.value) == (
        "TargetCost: no gate can close. With gamma=-0.001 and zeta=1.001 a gate closes at log_alpha <= -6.91, and "
        "log_alpha is kept above -4.61; take gamma further below 0."
    )


def test_wrong_options_are_refused() -> None:
    model, _ = gated()
    for target in (0.0, 1.0, 50.0):
        with pytest.raises(OptionError) as caught:
            TargetCost(model, target, 100)
        assert str(caught.value) == (f"TargetCost: target is {target}; expected a fraction strictly between 0 and 1.")
    with pytest.raises(OptionError) as caught:
        TargetCost(model, 0.5, 100, cost="flops")
    assert str(caught.value) == "TargetCost: cost is 'flops'; expected 'macs', 'parameters', or a LatencyTable."
    with pytest.raises(OptionError) as caught:
        TargetCost(model, 0.5, 100, cost=CostModel([], 2))
    assert str(caught.value) == (
        "TargetCost: the cost is one of 2 gate vectors, and SmallResNet has 3; measure it for these gates."
    )
    with pytest.raises(OptionError) as caught:
        TargetCost(model, 0.5, 100, warm_up=0.8, ramp=0.4)
    assert str(caught.value) == (
        "TargetCost: expected steps >= 1, warm_up and ramp >= 0 with a sum of at most 1, and strength > 0; found 100, "
        "0.8, 0.4 and 100.0."
    )
    with pytest.raises(NoGateError) as no_gate:
        TargetCost(nn.Linear(2, 2), 0.5, 100)
    assert str(no_gate.value) == "TargetCost: Linear has no attached gates; call attach first."
    other, _ = resnet()
    attach(other, {"fc": "input"})
    with pytest.raises(UnsupportedModelError) as unsupported:
        TargetCost(other, 0.5, 100)
    assert str(unsupported.value) == (
        "TargetCost: these gates were attached by layer patterns, so nothing is known of what they save; attach with a "
        "GateSpec and example inputs."
    )
