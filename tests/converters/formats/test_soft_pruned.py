"""A soft-pruned model of Torch-Pruning is a state dict with exact zeros, and needs no reader of its own."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
from format_agreement import FILES, assert_same, recognised
from torch import nn

from converters import convert
from converters.sources import SourceOptions, load_source
from l0runtime.errors import UnsupportedModelError

PATH = FILES / "torch_pruning" / "soft.pth"


def build() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)]
    return nn.Sequential(*layers, *head), (torch.zeros(1, 3, 8, 8),)


def test_a_file_written_after_soft_pruning_loses_what_is_zero(tmp_path: Path) -> None:
    x, expected = torch.load(FILES / "torch_pruning" / "expected.pth", weights_only=True)
    assert recognised(PATH) == "state-dict"
    assert_same(load_source(PATH, SourceOptions(build)), (x,), expected)
    convert(PATH, tmp_path / "compact.onnx", model=build)
    (found,) = ort.InferenceSession(tmp_path / "compact.onnx").run(None, {"input": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    shapes = sorted(list(t.dims) for t in onnx.load(tmp_path / "compact.onnx").graph.initializer if len(t.dims) == 4)
    assert shapes == [[4, 3, 3, 3], [6, 4, 3, 3]]  # half of 8 and of 12 channels


def test_a_whole_model_as_the_library_saves_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "whole.pth"
    torch.save({"full_state_dict": {"": build()[0]}, "attributions": {}}, path)
    with pytest.raises(UnsupportedModelError, match=r"save the state dict alone: torch\.save\(model\.state_dict\(\)"):
        load_source(path, SourceOptions(build))
