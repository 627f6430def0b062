"""Checkpoints of l0runtime.gates are recognised by their header and rebuilt from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from converters.formats.own_checkpoint import SOURCE
from converters.sources import Candidate, SourceOptions, load_source
from l0runtime.errors import InputError, ModelFileError, OptionError
from l0runtime.gates import GatedConv2d, GatedLinear, LeNet300, save


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save(LeNet300(inputs=12, hidden=(6, 4), classes=3), path)
    return path


def test_gates_and_an_input_that_fits_are_found(checkpoint: Path) -> None:
    gated = load_source(checkpoint, SourceOptions())
    assert gated.format == "l0runtime"
    assert [(group.layer, group.units) for group in gated.gates] == [("layers.1", 12), ("layers.3", 6), ("layers.5", 4)]
    assert [tuple(tensor.shape) for tensor in gated.example_inputs] == [(1, 12)]
    assert gated.module is not None
    assert not gated.module.training


def test_given_example_inputs_are_kept(checkpoint: Path) -> None:
    gated = load_source(checkpoint, SourceOptions(example_inputs=(torch.ones(3, 1, 12),)))
    assert [tuple(tensor.shape) for tensor in gated.example_inputs] == [(3, 1, 12)]
    assert gated.notes == ()


def test_a_model_beside_the_checkpoint_is_refused(checkpoint: Path) -> None:
    with pytest.raises(OptionError) as caught:
        load_source(checkpoint, SourceOptions(model="a:b"))
    assert str(caught.value) == f"{checkpoint}: the checkpoint names its own architecture; leave out the model."


def test_a_checkpoint_truncated_behind_its_header_is_still_recognised_and_refused(checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-10])
    assert SOURCE.recognise(Candidate(checkpoint))
    with pytest.raises(ModelFileError, match=f"^{checkpoint}: truncated, or no safetensors file"):
        load_source(checkpoint, SourceOptions())


def test_a_foreign_safetensors_file_is_not_recognised(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "foreign.safetensors", metadata={"format": "pt"})
    assert not SOURCE.recognise(Candidate(tmp_path / "foreign.safetensors"))


def odd_net() -> torch.nn.Sequential:
    return torch.nn.Sequential(GatedConv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), GatedLinear(4 * 5 * 7, 3))


def test_the_input_shape_that_was_stored_is_used(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(odd_net(), path)
    with pytest.raises(InputError, match="runs on none of the usual inputs"):
        load_source(path, SourceOptions())
    save(odd_net(), path, input_shape=(2, 7, 9))
    gated = load_source(path, SourceOptions())
    assert [tuple(tensor.shape) for tensor in gated.example_inputs] == [(1, 2, 7, 9)]
    assert gated.notes == ()


@pytest.mark.parametrize("sizes", [[0], "3x4", [2.5], [], [10**9]])
def test_an_odd_input_shape_in_the_header_is_refused(checkpoint: Path, sizes: object) -> None:
    with safe_open(checkpoint, "pt") as file:
        header = json.loads(file.metadata()["l0runtime"])
    tensors = load_file(checkpoint)
    save_file(tensors, checkpoint, {"l0runtime": json.dumps({**header, "input_shape": sizes})})
    with pytest.raises(ModelFileError) as caught:
        load_source(checkpoint, SourceOptions())
    assert str(caught.value) == (
        f"{checkpoint}: input_shape in its header is {sizes}; expected sizes of at least 1, of 100000000 numbers at "
        "most."
    )
