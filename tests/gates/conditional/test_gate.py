"""A conditional gate draws while training, and decides by its input alone afterwards."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from l0runtime.errors import GateParameterError
from l0runtime.gates import HardConcrete
from l0runtime.gates.conditional import ConditionalGate
from l0runtime.gates.conditional.gate import pool


def with_logits(gate: ConditionalGate) -> ConditionalGate:
    """The logit is the only feature itself."""
    with torch.no_grad():
        gate.last.weight.fill_(1.0)
        gate.last.bias.zero_()
    return gate


LOGITS = torch.tensor([[-3.0], [-1.6], [-1.0], [0.0], [0.5], [4.0]])


def test_gumbel_gates_are_0_or_1_by_the_sign_of_the_logit() -> None:
    gate = with_logits(ConditionalGate(1, hidden=0)).eval()
    assert gate(LOGITS).tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(("rule", "scale"), [("median", 3 / 2), ("paper", 1.0)])
def test_hard_concrete_gates_follow_their_rule(rule: str, scale: float) -> None:
    """clip(sigmoid(scale * a) * 1.2 - 0.1, 0, 1): zero at and below -ln(11) / scale, -1.5986 and -2.398."""
    gate = with_logits(ConditionalGate(1, hidden=0, kind="hard-concrete", rule=rule)).eval()  # type: ignore[arg-type]
    expected = [min(1.0, max(0.0, 1.2 / (1 + math.exp(-scale * a)) - 0.1)) for a in LOGITS[:, 0].tolist()]
    expected = [0.0 if a <= -math.log(11) / scale else z for a, z in zip(LOGITS[:, 0].tolist(), expected, strict=True)]
    found = gate(LOGITS)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)
    assert (found == 0).tolist() == [z == 0 for z in expected]


@pytest.mark.parametrize("kind", ["gumbel", "hard-concrete"])
def test_evaluation_is_free_of_noise_and_each_sample_decides_for_itself(kind: str) -> None:
    torch.manual_seed(0)
    gate, x = ConditionalGate(5, kind=kind).eval(), torch.randn(64, 5, 3, 3)  # type: ignore[arg-type]
    assert torch.equal(gate(x), gate(x))
    torch.testing.assert_close(gate(x)[7:9], gate(x[7:9]))


@pytest.mark.parametrize("kind", ["gumbel", "hard-concrete"])
@pytest.mark.parametrize("rate", [0.2, 0.85])
def test_training_begins_at_the_initial_rate(kind: str, rate: float) -> None:
    torch.manual_seed(1)
    gate = ConditionalGate(4, kind=kind, initial_rate=rate).train()  # type: ignore[arg-type]
    values = gate(torch.randn(20_000, 4))
    # 20,000 draws: a standard deviation of 0.004
    assert (values > 0).float().mean().item() == pytest.approx(rate, abs=0.02)
    assert gate.take_decisions().probabilities.mean().item() == pytest.approx(rate, abs=0.02)


def test_gumbel_gates_pass_the_gradient_of_the_softened_step() -> None:
    gate = with_logits(ConditionalGate(1, hidden=0, temperature=0.5)).train()
    logits = torch.tensor([[0.3]], requires_grad=True)
    torch.manual_seed(2)
    value = gate(logits)
    value.sum().backward()
    torch.manual_seed(2)
    noise = HardConcrete().draw_noise((1,), logits)
    soft = 1 / (1 + math.exp(-(0.3 + noise.item()) / 0.5))
    assert logits.grad is not None
    assert logits.grad.item() == pytest.approx(soft * (1 - soft) / 0.5, rel=1e-5)
    assert value.item() == float(0.3 + noise.item() > 0)


@pytest.mark.parametrize(
    ("shape", "dims"), [((2, 3), ()), ((2, 7, 3), (1,)), ((2, 3, 4, 5), (2, 3)), ((2, 3, 4, 5, 6), (2, 3, 4))]
)
def test_features_are_means_over_space_or_positions(shape: tuple[int, ...], dims: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    torch.testing.assert_close(pool(x), x.double().mean(dims).float() if dims else x)


def test_decisions_can_be_taken_once() -> None:
    gate = ConditionalGate(2).train()
    gate(torch.randn(3, 2))
    assert gate.take_decisions().values.shape == (3,)
    with pytest.raises(GateParameterError) as caught:
        gate.take_decisions()
    assert str(caught.value) == (
        "ConditionalGate: no decisions to take; run the model in train() mode on a batch first, "
        "once before each call of the objective."
    )


def test_kind_rule_and_constants_travel_in_the_state_dict() -> None:
    source = ConditionalGate(2, kind="hard-concrete", rule="paper", constants=HardConcrete(0.5, -0.2, 1.3))
    target = ConditionalGate(2)
    target.load_state_dict(source.state_dict())
    assert (target.kind, target.rule, target.constants) == ("hard-concrete", "paper", HardConcrete(0.5, -0.2, 1.3))
    x = torch.randn(9, 2)
    assert torch.equal(target.eval()(x), source.eval()(x))


def test_an_unreadable_state_is_refused() -> None:
    with pytest.raises(GateParameterError) as caught:
        ConditionalGate(2).set_extra_state(torch.tensor([1, 2], dtype=torch.uint8))
    assert str(caught.value) == (
        "ConditionalGate: the stored constants are unreadable; expected JSON with kind, beta, gamma, zeta and rule. "
        "Save the checkpoint again."
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": 0}, "ConditionalGate: features is 0 and hidden is 16; expected at least 1 and 0."),
        ({"kind": "hard"}, "ConditionalGate: kind is 'hard'; expected one of hard-concrete, gumbel."),
        ({"initial_rate": 1.0}, "ConditionalGate: initial_rate is 1.0; expected a number strictly between 0 and 1."),
        ({"temperature": 0.0}, "ConditionalGate: temperature is 0.0; expected a number above 0."),
        ({"rule": "top-k"}, "the top-k rule closes gates by rank; it has no threshold on log_alpha."),
    ],
)
def test_arguments_without_meaning_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(GateParameterError) as caught:
        ConditionalGate(**{"features": 3, **arguments})  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_an_input_that_cannot_be_pooled_is_refused() -> None:
    with pytest.raises(GateParameterError) as caught:
        ConditionalGate(3)(Tensor([1.0]))
    assert str(caught.value) == (
        "ConditionalGate: the input has shape [1]; expected [batch, features], [batch, length, features] "
        "or [batch, features, height, width]."
    )
