"""Files of torch.save are read as data; nothing in them is ever executed."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from converters.torch_files import read_torch_file, tensors_of
from l0runtime.errors import ModelFileError, UnsupportedModelError


class Malicious:
    """Unpickling it runs a command that leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def test_tensors_numbers_and_numpy_scalars_are_read(tmp_path: Path) -> None:
    content = {
        "state_dict": {"a": torch.arange(3.0)},
        "epoch": 3,
        "best": np.float64(0.5),
        "seen": np.int64(7),
        "losses": [0.1, 0.2],
    }
    torch.save(content, tmp_path / "file.pth")
    found = read_torch_file(tmp_path / "file.pth")
    assert found["state_dict"]["a"].tolist() == [0, 1, 2]
    assert (found["epoch"], found["best"], found["seen"], found["losses"]) == (3, 0.5, 7, [0.1, 0.2])


def test_the_old_format_before_zip_archives_is_read_too(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_torch_file(tmp_path / "old.pth")["a"].tolist() == [1, 1]


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, new_format: bool) -> None:
    mark = tmp_path / "mark"
    torch.save({"a": Malicious(mark)}, tmp_path / "bad.pth", _use_new_zipfile_serialization=new_format)
    with pytest.raises((UnsupportedModelError, ModelFileError)) as caught:
        read_torch_file(tmp_path / "bad.pth")
    assert not mark.exists()
    if new_format:
        assert str(caught.value) == (
            f"{tmp_path / 'bad.pth'}: holds objects that are not data (posix.system); reading them would run code "
            "from the file. Where it was made, save the state dict alone: torch.save(model.state_dict(), path)."
        )


def test_a_whole_pickled_module_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(UnsupportedModelError, match=r"\(torch\.nn\.modules\.linear\.Linear.*save the state dict"):
        read_torch_file(tmp_path / "module.pth")


def test_a_bare_pickle_is_not_run_either(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(Malicious(mark), protocol=2))
    with pytest.raises((UnsupportedModelError, ModelFileError)):
        read_torch_file(tmp_path / "bad.pkl")
    assert not mark.exists()


def test_every_truncation_gives_a_clear_error(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(50)}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for size in range(10, len(whole) - 1, 97):
        (tmp_path / "cut.pth").write_bytes(whole[:size])
        with pytest.raises(ModelFileError, match="cannot be read as a torch checkpoint"):
            read_torch_file(tmp_path / "cut.pth")


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(ModelFileError) as caught:
        read_torch_file(tmp_path / "bomb.pth")
    assert str(caught.value) == (
        f"{tmp_path / 'bomb.pth'}: a compressed zip archive (archive/data.pkl); torch.save writes uncompressed ones. "
        "Save the checkpoint again with torch.save."
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "found list, expected a state dict of tensors by name."),
        ({"a": 3}, "'a' is int; expected tensors by name."),
        ({3: torch.ones(1)}, "3 is Tensor; expected tensors by name."),
        ({"a": torch.ones(3).to_sparse()}, "a is a sparse, quantised or complex tensor; expected a plain one."),
        (
            {"a": torch.ones(1).expand(10**9)},
            "a claims 1000000000 elements, its storage holds fewer. The file is damaged.",
        ),
    ],
)
def test_a_state_dict_holds_tensors_by_name(content: object, message: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        tensors_of(content, Path("file.pth"))
    assert str(caught.value) == f"file.pth: {message}"
