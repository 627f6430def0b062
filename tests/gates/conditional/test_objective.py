"""The penalty draws execution to its target and notices gates that always decide alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from l0runtime.errors import NoGateError, OptionError
from l0runtime.gates.conditional import Conditional, ConditionalGate, ConditionalPenalty, shape_distance
from l0runtime.gates.conditional.gate import Decisions, GateKind


def net_with(*rates: float) -> nn.Sequential:
    """Blocks whose gates have just decided with these shares of 100 samples."""
    net = nn.Sequential(*(Conditional(nn.Linear(2, 2), ConditionalGate(2)) for _ in rates))
    for block, rate in zip(net, rates, strict=True):
        values = (torch.arange(100) < 100 * rate).float()
        block.gate._decisions = Decisions(values, values, values)
    return net


def test_the_rate_of_each_gate_is_drawn_to_its_target() -> None:
    penalty = ConditionalPenalty(net_with(0.5, 1.0), 0.6, weight=3.0)
    assert penalty().item() == pytest.approx(3 * ((0.5 - 0.6) ** 2 + (1.0 - 0.6) ** 2) / 2)


def test_each_gate_may_have_a_target_of_its_own() -> None:
    penalty = ConditionalPenalty(net_with(0.5, 1.0), {"0.gate": 0.5, "1.gate": 0.8}, weight=1.0)
    assert penalty().item() == pytest.approx(0.2**2 / 2)


def test_the_work_of_the_model_is_drawn_to_its_target() -> None:
    macs = {"0.gate": 300, "1.gate": 100}
    penalty = ConditionalPenalty(net_with(0.5, 1.0), 0.5, unit="macs", macs=macs, weight=1.0)
    assert penalty().item() == pytest.approx(((300 * 0.5 + 100) / 400 - 0.5) ** 2)


def test_work_within_a_block_counts_where_both_run() -> None:
    """100 samples: the outer block runs for the first half, the inner one for every other sample, so 25 reach it."""
    inner = Conditional(nn.Linear(2, 2), ConditionalGate(2))
    net = Conditional(nn.Sequential(nn.Linear(2, 2), inner), ConditionalGate(2))
    first_half, every_other = (torch.arange(100) < 50).float(), (torch.arange(100) % 2).float()
    net.gate._decisions = Decisions(first_half, first_half, first_half)
    inner.gate._decisions = Decisions(every_other, every_other, every_other)
    penalty = ConditionalPenalty(net, 0.0, unit="macs", macs={"gate": 300, "body.1.gate": 100}, weight=1.0)
    assert penalty().item() == pytest.approx(((300 * 0.5 + 100 * 0.25) / 400) ** 2)


def test_what_counts_is_what_evaluation_would_decide() -> None:
    net = nn.Sequential(Conditional(nn.Linear(2, 2), ConditionalGate(2)))
    at_target = (torch.arange(100) < 30).float()
    net[0].gate._decisions = Decisions(at_target, torch.full((100,), 0.3), torch.zeros(100))
    assert ConditionalPenalty(net, 0.3, weight=3.0)().item() == pytest.approx(3 * 0.3**2)


@pytest.mark.parametrize("kind", ["gumbel", "hard-concrete"])
def test_a_gate_tells_what_evaluation_would_decide(kind: GateKind) -> None:
    torch.manual_seed(0)
    gate = ConditionalGate(4, kind=kind, initial_rate=0.5)
    x = torch.randn(200, 4)
    gate.train()(x)
    made = gate.take_decisions()
    assert torch.equal(made.settled.detach(), (gate.eval()(x) > 0).float())
    (slope,) = torch.autograd.grad(made.settled.sum(), gate.last.bias, retain_graph=True)
    (expected,) = torch.autograd.grad(made.probabilities.sum(), gate.last.bias)
    assert torch.equal(slope, expected)


@pytest.mark.parametrize("kind", ["gumbel", "hard-concrete"])
def test_training_reaches_the_target_in_evaluation_too(kind: GateKind) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Conditional(nn.Linear(4, 4), ConditionalGate(4, hidden=0, kind=kind))).train()
    penalty = ConditionalPenalty(net, 0.3)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(200):
        net(torch.randn(128, 4))
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
    assert (net.eval()[0].gate(torch.randn(20_000, 4)) > 0).float().mean().item() == pytest.approx(0.3, abs=0.05)


def test_a_batch_drawn_from_the_prior_is_at_no_distance() -> None:
    """Quantiles of Kumaraswamy's distribution: p = (1 - (1 - q)^(1/b))^(1/a)."""
    q = torch.arange(1, 100, dtype=torch.float64) / 100
    prior = (1 - (1 - q) ** (1 / 0.4)) ** (1 / 0.6)
    assert shape_distance(prior[torch.randperm(99)]).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("always", [0.0, 1.0])
def test_a_gate_that_always_decides_alike_is_a_third_away(always: float) -> None:
    """The mean of (i / n)^2 is about 1/3; F at the margin is not quite 0 or 1."""
    assert shape_distance(torch.full((1000,), always)).item() == pytest.approx(1 / 3, abs=0.01)


def test_shaping_separates_decisions_that_are_all_alike() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Conditional(nn.Linear(4, 4), ConditionalGate(4, hidden=0, initial_rate=0.99))).train()
    penalty = ConditionalPenalty(net, 0.5, weight=0.0, shaping=1.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    x = torch.randn(256, 4)
    for _ in range(200):
        net(x)
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
    runs = net.eval()[0].gate(x)
    assert 0.3 < runs.mean().item() < 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 1.5}, "ConditionalPenalty: targets must lie in [0, 1], weight and shaping must not be negative."),
        ({"target": {"0.gate": 0.5}}, "ConditionalPenalty: gate 1.gate has no target, or no macs; give one per gate."),
        ({"target": 0.5, "unit": "flops"}, "ConditionalPenalty: unit is 'flops'; expected 'rate' or 'macs'."),
        (
            {"target": 0.5, "unit": "macs"},
            "ConditionalPenalty: unit 'macs' takes one target, and macs of each block (block_macs).",
        ),
    ],
)
def test_arguments_without_meaning_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        ConditionalPenalty(net_with(0.5, 0.5), **arguments)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_a_model_without_conditional_gates_is_refused() -> None:
    with pytest.raises(NoGateError) as caught:
        ConditionalPenalty(nn.Linear(1, 1), 0.5)
    assert str(caught.value) == ("ConditionalPenalty: the model has no conditional gate; use Conditional or EarlyExit.")
