"""Does a gate module sample while training, stay fixed afterwards, and carry its rule wherever it goes?"""

from __future__ import annotations

import copy
import math

import pytest
import torch

from l0runtime.errors import GateParameterError
from l0runtime.gates import Gate, HardConcrete


def gate_with(log_alpha: list[float], **options: object) -> Gate:
    gate = Gate(len(log_alpha), **options)  # type: ignore[arg-type]
    with torch.no_grad():
        gate.log_alpha.copy_(torch.tensor(log_alpha))
    return gate


def test_in_eval_the_gate_multiplies_by_its_final_values() -> None:
    gate = gate_with([-5.0, 0.0, 5.0]).eval()
    x = torch.randn(4, 3, 2, 2)
    # by hand: sigmoid(0) * 1.2 - 0.1 = 0.5
    expected = x * torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(gate(x), expected)
    assert gate.closed().tolist() == [True, False, False]
    assert gate.kept_count() == 2


def test_any_axis_can_be_gated() -> None:
    gate = gate_with([-5.0, 0.0, 5.0]).eval()
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(gate(x, dim=-1), x * torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(gate(x.transpose(0, 2), dim=0), (x * torch.tensor([0.0, 0.5, 1.0])).transpose(0, 2))


def test_training_draws_one_sample_for_the_batch_or_one_per_example() -> None:
    torch.manual_seed(0)
    x = torch.ones(64, 10)
    for_batch = Gate(10)(x)
    assert (for_batch == for_batch[0]).all()
    per_example = Gate(10, per_example=True)(x)
    assert len({tuple(row.tolist()) for row in per_example}) > 60


def test_samples_are_open_as_often_as_the_probability_says() -> None:
    torch.manual_seed(0)
    gate = gate_with([-2.0, 0.0, 1.0], per_example=True)
    is_open = (gate(torch.ones(200_000, 3)) != 0).double().mean(0)
    # five standard deviations of a frequency over 200,000 draws
    torch.testing.assert_close(is_open, gate.probability_open().detach().double(), atol=0.0056, rtol=0)


@pytest.mark.parametrize("drop_rate", [0.1, 0.2, 0.5, 0.9])
def test_initial_gates_lie_around_the_logit_of_the_drop_rate(drop_rate: float) -> None:
    torch.manual_seed(0)
    log_alpha = Gate(10_000, drop_rate=drop_rate).log_alpha.detach()
    assert log_alpha.mean().item() == pytest.approx(math.log((1 - drop_rate) / drop_rate), abs=5e-4)
    assert log_alpha.std().item() == pytest.approx(0.01, rel=0.05)


def test_clamping_keeps_log_alpha_within_log_100() -> None:
    gate = gate_with([-50.0, 1.0, 50.0])
    gate.clamp_()
    assert gate.log_alpha.tolist() == pytest.approx([-4.60517, 1.0, 4.60517], abs=1e-5)


def test_constants_and_rule_travel_in_the_state_dict() -> None:
    source = Gate(3, constants=HardConcrete(0.5, -0.2, 1.3), rule="median")
    target = Gate(3)
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    assert target.constants == HardConcrete(0.5, -0.2, 1.3)
    assert target.rule == "median"


def test_half_precision_does_not_round_the_constants() -> None:
    gate = Gate(3).half().double()
    target = Gate(3)
    target.load_state_dict(gate.state_dict())
    assert target.constants == HardConcrete(2 / 3, -0.1, 1.1)


def test_a_state_dict_that_does_not_tell_the_rule_is_refused() -> None:
    with pytest.raises(RuntimeError, match="_extra_state"):
        Gate(3).load_state_dict({"log_alpha": torch.zeros(3)})


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"beta": null, "gamma": -0.1, "zeta": 1.1, "rule": "paper"}'])
def test_unreadable_constants_are_refused(text: str) -> None:
    with pytest.raises(GateParameterError) as caught:
        Gate(3).set_extra_state(torch.tensor(list(text.encode()), dtype=torch.uint8))
    assert str(caught.value) == (
        "Gate: the stored constants are unreadable; expected JSON with beta, gamma, zeta and rule. "
        "Save the checkpoint again."
    )


def test_meaningless_stored_constants_are_named() -> None:
    text = '{"beta": -1, "gamma": -0.1, "zeta": 1.1, "rule": "paper"}'
    with pytest.raises(GateParameterError) as caught:
        Gate(3).set_extra_state(torch.tensor(list(text.encode()), dtype=torch.uint8))
    assert str(caught.value) == "HardConcrete: beta is -1.0; expected a finite number above 0."


@pytest.mark.parametrize(
    ("size", "drop_rate", "message"),
    [
        (0, 0.5, "Gate: size is 0; expected at least 1 gate."),
        (3, 0.0, "Gate: drop_rate is 0.0; expected a number strictly between 0 and 1."),
        (3, 1.0, "Gate: drop_rate is 1.0; expected a number strictly between 0 and 1."),
    ],
)
def test_a_gate_without_meaning_is_refused(size: int, drop_rate: float, message: str) -> None:
    with pytest.raises(GateParameterError) as caught:
        Gate(size, drop_rate=drop_rate)
    assert str(caught.value) == message


def test_per_example_samples_cannot_gate_the_batch_axis() -> None:
    with pytest.raises(GateParameterError) as caught:
        Gate(3, per_example=True)(torch.ones(3, 2), dim=0)
    assert str(caught.value) == "Gate: per-example samples need a batch axis; gate another axis than 0."


def test_a_tensor_of_another_width_is_refused() -> None:
    with pytest.raises(GateParameterError) as caught:
        Gate(3)(torch.ones(2, 4))
    assert str(caught.value) == "Gate: axis 1 of the input has length 4; expected 3, the number of gates."
