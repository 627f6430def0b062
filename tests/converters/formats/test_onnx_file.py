"""ONNX files are recognised by content or by name, and read with clear errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import make_mlp

from converters.formats.onnx_file import SOURCE
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


def external(tmp_path: Path, location: str = "data.bin") -> Path:
    """A model whose weights lie in another file, under a location that may be a lie."""
    path = tmp_path / "folder" / "model.onnx"
    path.parent.mkdir()
    onnx.save(make_mlp((1.0,) * 80), path, save_as_external_data=True, location="data.bin", size_threshold=256)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_beside_the_model_are_accepted(tmp_path: Path) -> None:
    SOURCE.load(Candidate(external(tmp_path)), SourceOptions())


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", ""])
def test_weights_elsewhere_on_the_disk_are_not_read(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(b"0" * 10_000)
    path = external(tmp_path, location)
    with pytest.raises(ModelFileError) as caught:
        SOURCE.load(Candidate(path), SourceOptions())
    assert str(caught.value) == (
        f"{path}: the values of fc1.weight are said to lie in {location!r}, outside of the model's folder. "
        "Only files beside the model are read."
    )


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    path = external(tmp_path, "link")
    (tmp_path / "secret").write_bytes(b"0" * 10_000)
    (path.parent / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelFileError, match="outside of the model's folder"):
        SOURCE.load(Candidate(path), SourceOptions())


def test_missing_and_truncated_weights_are_named(tmp_path: Path) -> None:
    path = external(tmp_path)
    data = path.parent / "data.bin"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ModelFileError) as caught:
        SOURCE.load(Candidate(path), SourceOptions())
    # 80 x 5 float32
    assert str(caught.value) == (
        f"{path}: the values of fc1.weight end at byte 1600 of 'data.bin', which has 100. "
        "The data file is truncated, or belongs to another model."
    )
    data.unlink()
    with pytest.raises(ModelFileError) as caught:
        SOURCE.load(Candidate(path), SourceOptions())
    assert str(caught.value) == f"{path}: the values of fc1.weight lie in 'data.bin', which is missing."
