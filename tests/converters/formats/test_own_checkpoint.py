"""Checkpoints of l0runtime.gates are recognised by their header and rebuilt from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from converters.formats.own_checkpoint import SOURCE
from converters.sources import Candidate, SourceOptions, load_source
from l0runtime.errors import ModelFileError, OptionError
from l0runtime.gates import LeNet300, save


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
