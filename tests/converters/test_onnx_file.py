"""ONNX files are recognised by content or by name, and read with clear errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converters.onnx_file import SOURCE
from converters.sources import Candidate, SourceOptions
from l0runtime.errors import ModelFileError


def test_an_onnx_file_is_taken_as_it_is(mlp: Path) -> None:
    gated = SOURCE.load(Candidate(mlp), SourceOptions())
    assert (gated.onnx_path, gated.gates) == (mlp, ())


def test_the_name_alone_is_enough_for_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(b"not a model")
    assert SOURCE.recognise(Candidate(path))
    with pytest.raises(ModelFileError, match="The file is truncated or of another format"):
        SOURCE.load(Candidate(path), SourceOptions())


def test_content_is_recognised_whatever_the_name(mlp: Path) -> None:
    renamed = mlp.rename(mlp.with_suffix(".bin"))
    assert SOURCE.recognise(Candidate(renamed))


def test_other_formats_are_left_to_their_readers_even_under_the_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", a=np.ones(2))
    path = (tmp_path / "arrays.npz").rename(tmp_path / "arrays.onnx")
    assert not SOURCE.recognise(Candidate(path))
