"""Do gated layers compute their documented formulas, and count the parameters behind each gate?"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from l0runtime.errors import GateParameterError
from l0runtime.gates import GatedConv2d, GatedLinear

# log_alpha -> z by hand: closed; sigmoid(0) 1.2 - 0.1 = 0.5; open
LOG_ALPHA = torch.tensor([-5.0, 0.0, 5.0, 0.0])
Z = torch.tensor([0.0, 0.5, 1.0, 0.5])


def prepare(layer: GatedLinear | GatedConv2d) -> GatedLinear | GatedConv2d:
    with torch.no_grad():
        layer.gate.log_alpha.copy_(LOG_ALPHA)
        if layer.bias is not None:
            layer.bias.normal_()
    return layer.eval()


def test_linear_gates_its_input_units_and_not_its_bias() -> None:
    layer, x = prepare(GatedLinear(4, 3)), torch.randn(5, 4)
    torch.testing.assert_close(layer(x), F.linear(x * Z, layer.weight, layer.bias))


def test_linear_gates_its_output_units_with_their_bias() -> None:
    layer, x = prepare(GatedLinear(3, 4, side="output")), torch.randn(5, 3)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias) * Z)
    assert (layer(x)[:, 0] == 0).all()


def test_linear_output_gates_can_leave_the_bias_alone() -> None:
    layer, x = prepare(GatedLinear(3, 4, side="output", gate_bias=False)), torch.randn(5, 3)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight) * Z + layer.bias)
    assert (layer(x)[:, 0] == layer.bias[0]).all()


def test_linear_works_on_sequences_and_without_bias() -> None:
    layer, x = prepare(GatedLinear(3, 4, bias=False, side="output", gate_bias=False)), torch.randn(2, 7, 3)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight) * Z)


def test_convolution_gates_its_output_channels_after_the_bias() -> None:
    layer, x = prepare(GatedConv2d(2, 4, 3, stride=2, padding=1)), torch.randn(3, 2, 8, 8)
    expected = F.conv2d(x, layer.weight, layer.bias, 2, 1) * Z.view(4, 1, 1)
    torch.testing.assert_close(layer(x), expected)
    assert (layer(x)[:, 0] == 0).all()


def test_convolution_output_gates_can_leave_the_bias_alone() -> None:
    layer, x = prepare(GatedConv2d(2, 4, 3, gate_bias=False)), torch.randn(3, 2, 8, 8)
    expected = F.conv2d(x, layer.weight) * Z.view(4, 1, 1) + layer.bias.view(4, 1, 1)  # type: ignore[union-attr]
    torch.testing.assert_close(layer(x), expected)


def test_convolution_gates_its_input_channels() -> None:
    layer, x = prepare(GatedConv2d(4, 6, 3, groups=2, side="input")), torch.randn(3, 4, 8, 8)
    torch.testing.assert_close(layer(x), F.conv2d(x * Z.view(4, 1, 1), layer.weight, layer.bias, groups=2))


@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize(
    "layer_of",
    [
        lambda per_example: GatedLinear(4, 3, per_example=per_example),
        lambda per_example: GatedLinear(4, 3, side="output", per_example=per_example),
    ],
)
def test_training_reaches_weights_and_gates(layer_of: object, per_example: bool) -> None:
    torch.manual_seed(1)
    layer = layer_of(per_example)  # type: ignore[operator]
    layer(torch.randn(16, 4)).square().sum().backward()
    assert layer.weight.grad.abs().sum() > 0
    assert layer.gate.log_alpha.grad.abs().sum() > 0


def behind(layer: GatedLinear | GatedConv2d, position: int) -> list[Tensor]:
    """The parameters that a closed gate makes useless: those whose change does not reach the output any more."""
    with torch.no_grad():
        layer.gate.log_alpha.fill_(5.0)
        layer.gate.log_alpha[position] = -5.0
    shape = (2, 4, 5, 5) if isinstance(layer, GatedConv2d) else (2, 4)
    layer.eval().zero_grad()
    layer(torch.rand(shape) + 0.1).sum().backward()
    parameters = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    return [parameter.detach()[parameter.grad == 0] for parameter in parameters]


@pytest.mark.parametrize(
    "layer",
    [
        GatedLinear(4, 3),
        GatedLinear(4, 6, side="output"),
        GatedLinear(4, 6, side="output", gate_bias=False),
        GatedLinear(4, 6, bias=False, side="output"),
        GatedConv2d(4, 6, 3),
        GatedConv2d(4, 6, 3, bias=False),
        GatedConv2d(4, 6, 3, gate_bias=False),
        GatedConv2d(4, 6, 3, groups=2),
        GatedConv2d(4, 6, (3, 2), groups=2, side="input"),
    ],
    ids=str,
)
@pytest.mark.parametrize("position", [0, 2, 3])
def test_group_size_and_norm_are_those_of_the_parameters_that_lose_their_effect(
    layer: GatedLinear | GatedConv2d, position: int
) -> None:
    with torch.no_grad():
        if layer.bias is not None:
            layer.bias.normal_()
    dead = torch.cat([part.flatten() for part in behind(layer, position)])
    assert layer.group_size() == dead.numel()
    torch.testing.assert_close(layer.group_squared_norms()[position].detach(), dead.square().sum())


def test_weights_start_as_in_the_authors_code() -> None:
    torch.manual_seed(0)
    linear, convolution = GatedLinear(400, 500), GatedConv2d(16, 300, 5)
    # He's normal initialisation, standard deviation sqrt(2 / fan-in); 2e5 and 1.2e5 draws are good to 0.5 %
    assert linear.weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.01)
    assert convolution.weight.std().item() == pytest.approx((2 / (16 * 25)) ** 0.5, rel=0.01)
    assert (linear.bias == 0).all()
    assert convolution.bias is not None
    assert (convolution.bias == 0).all()


@pytest.mark.parametrize("cls", [GatedLinear, lambda *args, **options: GatedConv2d(*args, 3, **options)])
def test_an_unknown_side_is_refused(cls: object) -> None:
    with pytest.raises(GateParameterError) as caught:
        cls(4, 3, side="both")  # type: ignore[operator]
    assert str(caught.value) == "side is 'both'; expected 'input' or 'output'."
