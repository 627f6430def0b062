"""Is the penalty the paper's, and does a closed gate count as one?"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from gates.attachable import resnet, transformer
from l0runtime.errors import NoGateError, OptionError, UnsupportedModelError
from l0runtime.gates import (
    Gate,
    GatedConv2d,
    GatedLinear,
    GateSpec,
    PaperPenalty,
    attach,
    expected_l0,
    gated_layers,
    gates_of,
    kept_units,
)


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(GatedConv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), GatedLinear(16, 5))
    with torch.no_grad():
        for layer in gated_layers(model).values():
            layer.gate.log_alpha.normal_(0, 2)
            assert layer.bias is not None
            layer.bias.normal_()
    return model


def probability_open(layer: GatedConv2d | GatedLinear) -> np.ndarray:
    """Equation 12 of the paper at its constants, in NumPy."""
    a = layer.gate.log_alpha.detach().double().numpy()
    return 1 / (1 + np.exp(-(a - 2 / 3 * math.log(0.1 / 1.1))))


def test_penalty_is_the_papers_sum(model: nn.Sequential) -> None:
    convolution, linear = model[0], model[3]
    w1, b1 = (p.detach().double().numpy() for p in (convolution.weight, convolution.bias))
    w2 = linear.weight.detach().double().numpy()
    p1, p2 = probability_open(convolution), probability_open(linear)
    # by hand: a filter is 9 weights and its bias, an input unit the 5 weights that read it
    groups = (p1 * (3.0 * 10 + 0.25 * ((w1**2).sum((1, 2, 3)) + b1**2))).sum()
    groups += (p2 * (7.0 * 5 + 0.25 * (w2**2).sum(0))).sum()
    found = PaperPenalty(model, [3.0, 7.0], examples=1000, weight_decay=0.5)()
    assert found.item() == pytest.approx(groups / 1000, rel=1e-6)  # float32 sums


def test_one_lambda_counts_for_all_layers(model: nn.Sequential) -> None:
    assert PaperPenalty(model, [0.3], 10)().item() == PaperPenalty(model, [0.3, 0.3], 10)().item()


def test_the_l2_term_closes_gates_only_when_attached(model: nn.Sequential) -> None:
    gate, weight = model[3].gate.log_alpha, model[3].weight
    PaperPenalty(model, [0.0], 10, weight_decay=1.0)().backward()
    assert gate.grad is not None
    assert (gate.grad == 0).all()
    assert weight.grad.abs().sum() > 0
    model.zero_grad()
    PaperPenalty(model, [0.0], 10, weight_decay=1.0, detach_weight_decay=False)().backward()
    assert (gate.grad > 0).all()
    assert weight.grad.abs().sum() > 0


def test_expected_l0_sums_the_probabilities_times_group_sizes(model: nn.Sequential) -> None:
    expected = probability_open(model[0]).sum() * 10 + probability_open(model[3]).sum() * 5
    assert expected_l0(model) == pytest.approx(expected, rel=1e-6)


def test_kept_units_follow_the_evaluation_rule(model: nn.Sequential) -> None:
    with torch.no_grad():
        model[0].gate.log_alpha.copy_(torch.tensor([-3.0, -2.0, 0.0, 3.0]))
    assert kept_units(model)["0"] == (3, 4)
    model[0].gate.rule = "median"
    assert kept_units(model)["0"] == (2, 4)


def test_gated_layers_are_named_in_module_order(model: nn.Sequential) -> None:
    assert list(gated_layers(model)) == ["0", "3"]


@pytest.mark.parametrize(
    ("lambdas", "examples", "weight_decay", "message"),
    [
        ([1.0, 2.0, 3.0], 10, 0.0, "PaperPenalty: 3 lambdas for 2 gated layers (0, 3); give one, or one per layer."),
        ([1.0], 0, 0.0, "PaperPenalty: examples is 0; expected the number of training examples."),
        ([-1.0], 10, 0.0, "PaperPenalty: lambdas and weight_decay must not be negative."),
        ([1.0], 10, -0.1, "PaperPenalty: lambdas and weight_decay must not be negative."),
    ],
)
def test_settings_without_meaning_are_refused(
    model: nn.Sequential, lambdas: list[float], examples: int, weight_decay: float, message: str
) -> None:
    with pytest.raises(OptionError) as caught:
        PaperPenalty(model, lambdas, examples, weight_decay)
    assert str(caught.value) == message


def test_a_gate_that_stands_alone_is_counted_but_not_penalised_silently(model: nn.Sequential) -> None:
    model.insert(1, Gate(4))
    with torch.no_grad():
        model[1].log_alpha.copy_(torch.tensor([-3.0, -3.0, 0.0, 3.0]))
    assert list(gates_of(model)) == ["0", "1", "4"]
    assert kept_units(model)["1"] == (2, 4)
    with pytest.raises(UnsupportedModelError) as caught:
        PaperPenalty(model, [1.0], 10)
    assert str(caught.value) == (
        "PaperPenalty: gate 1 stands alone, so its number of parameters is unknown; "
        "use GatedLinear or GatedConv2d, or a penalty of your own."
    )


def test_a_model_without_gates_is_refused() -> None:
    with pytest.raises(NoGateError) as caught:
        PaperPenalty(nn.Linear(2, 2), [1.0], 10)
    assert str(caught.value) == ("PaperPenalty: the model has no gated layer; use attach, GatedLinear or GatedConv2d.")


def test_attached_gates_are_penalised_by_the_parameters_of_the_layers_that_write_them() -> None:
    """The small network's inner channels: conv1 of each block, 6 x 9 parameters a filter, without a bias."""
    model, inputs = resnet()
    gates = attach(model, GateSpec(kinds=("units",)), inputs)
    with torch.no_grad():
        for gate in gates:
            gate.log_alpha.normal_(0, 1, generator=torch.Generator().manual_seed(2))
    penalty = PaperPenalty(model, [0.1, 0.3], 50, weight_decay=0.01, detach_weight_decay=False)
    expected = torch.zeros(())
    for strength, block in ((0.1, "block1"), (0.3, "block2")):
        open_ = torch.sigmoid(gates.gate(f"{block}.conv1").log_alpha + 2 / 3 * math.log(11))
        norms = model.get_parameter(f"{block}.conv1.weight").square().sum((1, 2, 3))
        expected = expected + (open_ * (strength * 54 + 0.005 * norms)).sum()
    assert torch.allclose(penalty(), expected / 50)


def test_the_l2_term_closes_attached_gates_only_with_the_paper_s_behaviour() -> None:
    for detached in (True, False):
        model, inputs = transformer()
        gates = attach(model, GateSpec(kinds=("units", "heads", "blocks")), inputs)
        penalty = PaperPenalty(model, [0.0], 50, weight_decay=1.0, detach_weight_decay=detached)
        penalty().backward()
        pulled = [gate.log_alpha.grad is not None and bool((gate.log_alpha.grad > 0).all()) for gate in gates]
        assert pulled == [not detached] * len(gates)


def test_heads_count_the_rows_of_query_key_and_value() -> None:
    model, inputs = transformer()
    (heads,) = attach(model, GateSpec(kinds=("heads",)), inputs)
    assert heads.place.unit_parameters == 3 * 4 * (8 + 1)  # rows of 8 weights and a bias, 4 each for q, k and v
    weight = model.get_parameter("attention.in_proj_weight").detach()
    bias = model.get_parameter("attention.in_proj_bias").detach()
    by_hand = weight.view(3, 2, 4, 8).square().sum((0, 2, 3)) + bias.view(3, 2, 4).square().sum((0, 2))
    penalty = PaperPenalty(model, [0.0], 1, weight_decay=2.0)
    assert torch.allclose(penalty(), (heads.probability_open() * by_hand).sum())


def test_the_lambdas_rise_during_the_warm_up_and_a_resumed_penalty_goes_on(model: nn.Sequential) -> None:
    full = PaperPenalty(model, [0.3], 10)().item()
    penalty = PaperPenalty(model, [0.3], 10, warm_up=4)
    assert [penalty().item() for _ in range(3)] == pytest.approx([0.25 * full, 0.5 * full, 0.75 * full])
    twin = PaperPenalty(model, [0.3], 10, warm_up=4)
    twin.load_state_dict(penalty.state_dict())
    assert [twin().item() for _ in range(2)] == pytest.approx([full, full])


def test_a_negative_warm_up_is_refused(model: nn.Sequential) -> None:
    with pytest.raises(OptionError) as caught:
        PaperPenalty(model, [0.3], 10, warm_up=-1)
    assert str(caught.value) == "PaperPenalty: warm_up is -1; expected a number of steps."
