"""Files find the right reader, others can add readers, and what nobody knows is named."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from small_models import make_mlp

from converters import sources
from converters.sources import (
    BUILT_IN,
    Candidate,
    GatedModel,
    SourceOptions,
    available_sources,
    find_source,
    load_source,
    resolve_model_factory,
)
from l0runtime.errors import ModelFileError, OptionError, UnsupportedModelError


class Toy:
    """A source of another package."""

    name = "toy"
    description = "files that start with TOY"

    def recognise(self, file: Candidate) -> bool:
        return file.head.startswith(b"TOY")

    def load(self, file: Candidate, options: SourceOptions) -> GatedModel:
        return GatedModel(format=self.name, onnx_path=file.path.with_suffix(".onnx"), notes=("toy",))


TOY = Toy()
NOT_A_SOURCE = object()


def install(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    found = [
        importlib.metadata.EntryPoint(name, f"{__name__}:{value}", sources.ENTRY_POINT_GROUP)
        for name, value in points.items()
    ]
    monkeypatch.setattr(sources, "entry_points", lambda group: found if group == sources.ENTRY_POINT_GROUP else [])


def safetensors_header(path: Path, metadata: dict[str, str]) -> Path:
    header = json.dumps({"__metadata__": metadata}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


def test_every_built_in_source_is_found_under_its_own_name() -> None:
    found = available_sources()
    assert list(found)[: len(BUILT_IN)] == list(BUILT_IN)
    assert [source.name for source in found.values()] == list(found)


def test_an_installed_package_adds_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, toy="TOY")
    path = tmp_path / "model.toy"
    path.write_bytes(b"TOY")
    assert load_source(path, SourceOptions()).notes == ("toy",)


def test_a_package_that_takes_a_taken_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, onnx="TOY")
    with pytest.raises(OptionError) as caught:
        available_sources()
    assert str(caught.value) == (
        f"entry point 'onnx' of {__name__}:TOY: another source has that name. Rename one of them."
    )


def test_an_entry_point_that_is_no_source_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, odd="NOT_A_SOURCE")
    with pytest.raises(UnsupportedModelError) as caught:
        available_sources()
    assert str(caught.value) == (
        f"entry point 'odd' of {__name__}:NOT_A_SOURCE: found object, expected an object with "
        "name, description, recognise and load (converters.sources.Source)."
    )


def test_formats_are_told_apart_by_content(tmp_path: Path) -> None:
    onnx.save(make_mlp(), tmp_path / "no_suffix")
    torch.save({"state_dict": {"fcs.0.qz_loga": torch.zeros(3)}}, tmp_path / "amlab.pth.tar")
    own = safetensors_header(tmp_path / "own.safetensors", {"l0runtime": "{}"})
    found = [find_source(Candidate(path)).name for path in (tmp_path / "no_suffix", tmp_path / "amlab.pth.tar", own)]
    assert found == ["onnx", "amlab", "l0runtime"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError) as caught:
        Candidate(tmp_path / "nothing")
    assert str(caught.value) == (
        f"{tmp_path / 'nothing'}: no such file. Give the path of a checkpoint or of an ONNX file."
    )


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    with pytest.raises(ModelFileError) as caught:
        Candidate(path)
    assert str(caught.value) == f"{path}: the file is empty. Expected a checkpoint or an ONNX file."


@pytest.mark.parametrize(
    ("content", "description"),
    [
        (b"hello world", "starts with bytes 68 65 6c 6c 6f 20 77 6f"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{truncated", "a safetensors file"),
    ],
)
def test_a_file_of_no_known_format_is_described(tmp_path: Path, content: bytes, description: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        find_source(Candidate(path))
    known = "; ".join(f"{source.name} ({source.description})" for source in available_sources().values())
    assert str(caught.value) == f"{path}: {description}, which no source recognises. Known: {known}."


def test_a_damaged_torch_file_is_reported_as_such(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({"state_dict": {"a.qz_loga": torch.zeros(300)}}, path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ModelFileError, match="cannot be read as a torch checkpoint"):
        find_source(Candidate(path))


def test_an_ambiguous_file_asks_for_the_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Greedy(Toy):
        name = "greedy"

    monkeypatch.setattr(sources, "available_sources", lambda: {"toy": TOY, "greedy": Greedy()})
    path = tmp_path / "file"
    path.write_bytes(b"TOY")
    with pytest.raises(ModelFileError) as caught:
        find_source(Candidate(path))
    assert str(caught.value) == f"{path}: toy, greedy all recognise this file. Choose one with the option format."
    assert find_source(Candidate(path), "greedy").name == "greedy"


def test_an_unknown_format_lists_the_known_ones(mlp: Path) -> None:
    with pytest.raises(OptionError) as caught:
        find_source(Candidate(mlp), "keras")
    assert str(caught.value) == f"format 'keras' is unknown; known are {', '.join(available_sources())}."


def test_an_onnx_file_takes_no_options(mlp: Path) -> None:
    with pytest.raises(OptionError) as caught:
        load_source(mlp, SourceOptions(extra={"parameters": "last"}))
    assert str(caught.value) == f"{mlp}: an ONNX file takes no source options; found parameters."


def test_a_gated_model_is_exactly_one_thing() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        GatedModel(format="toy")
    assert str(caught.value) == ("source 'toy': set exactly one of module, program and onnx_path; found none.")


def factory() -> torch.nn.Module:
    return torch.nn.Linear(2, 2)


NO_FACTORY: Any = 3


def test_a_factory_is_found_by_name() -> None:
    assert resolve_model_factory(f"{__name__}:factory") is factory
    assert resolve_model_factory(factory) is factory


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "model 'resnet': expected package.module:factory, e.g. my_package.models:resnet20."),
        (
            "no_such_package.models:net",
            "model 'no_such_package.models:net': importing no_such_package.models failed (ModuleNotFoundError: "
            "No module named 'no_such_package'). Is it installed, or its folder in PYTHONPATH?",
        ),
        (f"{__name__}:NO_FACTORY", f"model '{__name__}:NO_FACTORY': {__name__} has no callable 'NO_FACTORY'."),
    ],
)
def test_an_unknown_model_is_named_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        resolve_model_factory(name)
    assert str(caught.value) == message
