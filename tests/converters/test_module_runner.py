"""The torch module is called as its ONNX export is: with arrays by name."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from converters.module_runner import ModuleRunner
from l0runtime.errors import UnsupportedModelError


class TwoInputs(nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor], scale: float, *, shift: Tensor) -> dict[str, object]:
        return {"sum": (pair[0] + pair[1]) * scale, "rest": (None, shift)}


def test_nested_inputs_are_filled_by_name_and_outputs_are_flattened() -> None:
    ones = torch.ones(2)
    runner = ModuleRunner(TwoInputs(), ((ones, ones), 2.0), {"shift": ones}, ["a", "b", "s"])
    outputs = runner({"a": np.array([1.0, 2]), "b": np.array([3.0, 4]), "s": np.array([5.0, 6])})
    assert [output.tolist() for output in outputs] == [[8, 12], [5, 6]]
    assert {name: array.tolist() for name, array in runner.example_feed().items()} == {
        "a": [1, 1],
        "b": [1, 1],
        "s": [1, 1],
    }


def test_the_double_computes_in_float64_and_leaves_the_module_alone() -> None:
    net = nn.Linear(3, 2)
    runner = ModuleRunner(net, (torch.ones(1, 3),), {}, ["x"])
    (output,) = runner.doubled()({"x": np.ones((1, 3), np.float32)})
    assert output.dtype == np.float64
    assert net.weight.dtype == torch.float32


def test_bfloat16_goes_in_and_comes_out() -> None:
    runner = ModuleRunner(nn.Identity(), (torch.ones(2, dtype=torch.bfloat16),), {}, ["x"])
    (output,) = runner({"x": np.array([1.5, -2], ml_dtypes.bfloat16)})
    assert (output.dtype, output.tolist()) == (ml_dtypes.bfloat16, [1.5, -2])


def test_as_many_names_as_tensors_are_needed() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        ModuleRunner(nn.Identity(), (torch.ones(1), torch.ones(1)), {}, ["x"])
    assert str(caught.value) == (
        "the exported graph has 1 inputs (x), the example has 2 tensors. "
        "Give tensors that forward reads, and no others."
    )
