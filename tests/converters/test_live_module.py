"""A live module becomes a gated model, unless it holds what cannot be converted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from converters.live_module import from_module, gates_of
from l0runtime.errors import InputError, UnsupportedModelError
from l0runtime.gates import Gate, GatedLinear


def test_gates_are_listed_under_the_layer_that_they_belong_to() -> None:
    net = nn.Sequential(GatedLinear(3, 2, rule="median"), Gate(2))
    with torch.no_grad():
        net[0].gate.log_alpha.copy_(torch.tensor([-9.0, 9, 9]))
        net[1].log_alpha.copy_(torch.tensor([-9.0, -9]))
    assert [(g.layer, g.units, g.kept, g.rule) for g in gates_of(net)] == [("0", 3, 2, "median"), ("1", 2, 0, "paper")]


def test_a_single_tensor_stands_for_a_tuple_of_one() -> None:
    assert len(from_module(nn.Linear(2, 2), torch.ones(1, 2)).example_inputs) == 1


def test_example_inputs_are_needed() -> None:
    with pytest.raises(InputError) as caught:
        from_module(nn.Linear(2, 2), None)
    assert str(caught.value) == (
        "nn.Module: no example inputs. Give one tensor per positional input of Linear.forward, "
        "batch first (example_inputs, or --input SHAPE on the command line)."
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "weight: 1 of 4 values are NaN"),
        (float("inf"), "weight: 1 of 4 values are infinite"),
    ],
)
def test_parameters_must_be_finite(value: float, message: str) -> None:
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight[0, 0] = value
    with pytest.raises(UnsupportedModelError) as caught:
        from_module(net, torch.ones(1, 2))
    assert str(caught.value) == (
        f"{message}; expected finite numbers. The training diverged or the file is damaged; take an earlier checkpoint."
    )


def test_a_buffer_may_hold_infinities_as_attention_masks_do() -> None:
    net = nn.Linear(2, 2)
    net.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    from_module(net, torch.ones(1, 2))


def test_a_module_on_another_device_is_refused() -> None:
    net = nn.Linear(2, 2, device="meta")
    with pytest.raises(UnsupportedModelError) as caught:
        from_module(net, torch.ones(1, 2))
    assert str(caught.value) == ("weight: is on device meta; expected cpu. Call module.cpu() before the conversion.")
