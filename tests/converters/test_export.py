"""Modules are exported with the axes that may vary, with exact zeros, or refused in one sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from converters.export import Exported, export
from converters.sources import GatedModel
from l0runtime.errors import UnsupportedModelError
from l0runtime.gates import GatedConv2d


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, 2, 2)


def run(module: nn.Module, *inputs: Tensor, **options: object) -> Exported:
    return export(GatedModel(format="test", module=module.eval(), example_inputs=inputs), **options)  # type: ignore[arg-type]


def shapes(exported: Exported) -> list[str]:
    return [str(value.shape) for value in (*exported.model.graph.inputs, *exported.model.graph.outputs)]


def test_a_convolutional_net_keeps_batch_height_and_width_open_and_its_zeros_exact() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(GatedConv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        net[0].gate.log_alpha.copy_(torch.tensor([-9.0, 9, -9, 0]))
    exported = run(net, torch.randn(1, 1, 8, 8))
    assert shapes(exported) == ["[batch,1,height,width]", "[batch,4]"]
    assert exported.notes == ("height and width may vary",)
    arrays = [value.const_value.numpy() for value in exported.model.graph.initializers.values() if value.const_value]
    (gate,) = [array.ravel() for array in arrays if array.shape == (1, 4, 1, 1)]
    assert (gate == 0).tolist() == [True, False, True, False]
    (found,) = exported.runner({"x" if "x" in exported.example_inputs else "input": np.ones((1, 1, 8, 8), np.float32)})
    assert found.shape == (1, 4)


def test_an_image_size_that_the_graph_would_compute_with_stays_fixed() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(7), nn.Flatten())
    exported = run(net, torch.randn(1, 1, 16, 16))
    assert shapes(exported) == ["[batch,1,16,16]", "[batch,196]"]
    assert exported.notes == (
        "height and width fixed at the example's: the graph would have to compute with them at run time; "
        "give dynamic_shapes to let them vary all the same",
    )


def test_a_batch_that_cannot_vary_is_fixed_and_the_reason_noted() -> None:
    exported = run(FixedBatch(), torch.randn(2, 4))
    assert shapes(exported) == ["[2,4]", "[2,2,2]"]
    assert exported.notes == (
        "the batch size is fixed at the example's: with another, FixedBatch: "
        "shape '[2, 2, 2]' is invalid for input of size 12",
    )


def test_every_size_can_be_fixed_on_request() -> None:
    assert shapes(run(nn.Linear(3, 2), torch.randn(4, 3), dynamic_shapes={})) == ["[4,3]", "[4,2]"]


def test_a_module_that_cannot_be_traced_is_refused_with_the_root_cause(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        run(Branching(), torch.randn(2, 4))
    text = str(caught.value)
    assert text.startswith("Branching: torch.onnx.export failed (GuardOnDataDependentSymNode: Could not guard on ")
    assert text.endswith("Make the model's forward exportable (torch.export), or convert an ONNX file of it.")
    assert capfd.readouterr().out == ""  # results go to stdout, so the exporter's tables must not
