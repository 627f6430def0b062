"""Folders that nn_pruning itself wrote compute what it computed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from format_agreement import FILES, assert_same, recognised, resave

from converters.sources import GatedModel, SourceOptions, load_source
from l0runtime.errors import L0RuntimeError, ModelFileError, UnsupportedModelError

FOLDERS = FILES / "nn_pruning"


def load(path: Path) -> GatedModel:
    return load_source(path, SourceOptions())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(FOLDERS / "topk-blocks", tmp_path / "checkpoint-10")
    return tmp_path / "checkpoint-10"


def set_arguments(folder: Path, **settings: Any) -> None:
    path = folder / "sparse_args.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("setting", ["topk-blocks", "sigmoid-1d-alt", "l0-and-1d"])
def test_the_masks_of_every_method_are_the_librarys_own(setting: str) -> None:
    *inputs, expected = torch.load(FOLDERS / setting / "expected.pth", weights_only=True)
    assert recognised(FOLDERS / setting) == recognised(FOLDERS / setting / "pytorch_model.bin") == "nn-pruning"
    assert_same(load(FOLDERS / setting), tuple(inputs), expected)
    assert_same(load(FOLDERS / setting / "pytorch_model.bin"), tuple(inputs), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"final_threshold": 0.6},
        {"bias_mask": False},
        {"dense_block_rows": 2, "dense_block_cols": 4},
        {"dense_pruning_method": "sigmoied_threshold"},
    ],
)
def test_every_setting_matters(folder: Path, settings: dict[str, Any]) -> None:
    """Each changes the function or does not fit the scores: none is ignored."""
    *inputs, expected = torch.load(folder / "expected.pth", weights_only=True)
    set_arguments(folder, **settings)
    with pytest.raises((AssertionError, ModelFileError)):
        assert_same(load(folder), tuple(inputs), expected)


def test_the_least_number_of_elements_is_kept(folder: Path) -> None:
    set_arguments(folder, dense_pruning_method="threshold", final_threshold=100.0, linear_min_parameters=0.1)
    gated = load(folder)
    layer = "bert.encoder.layer.0.intermediate.dense"
    scores = torch.load(folder / "pytorch_model.bin", weights_only=True)[
        f"{layer}.mask_module.context_modules.0.mask_scores"
    ]
    largest = scores.flatten().topk(4).indices  # int(0.1 * 36) + 1 of the blocks of 4 rows
    expected = 4 * len({int(index) // scores.shape[1] for index in largest})
    assert {group.layer: group.kept for group in gated.gates}[layer] == expected


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        (
            {"ampere_pruning_method": "annealing"},
            UnsupportedModelError,
            "ampere_pruning_method is 'annealing', which this reader does not know. Compile the model with nn_pruning "
            "(compile_model), export it to ONNX and convert that.",
        ),
        (
            {"dense_pruning_method": "topK:joint"},
            UnsupportedModelError,
            "dense_pruning_method is 'topK:joint'; known are topK, threshold, sigmoied_threshold, l0, each alone or "
            "with :1d, :1d_alt.",
        ),
        (
            {"final_threshold": None},
            ModelFileError,
            "final_threshold and linear_min_parameters are [None, 0.005]; expected numbers.",
        ),
        (
            {"attention_block_rows": 0},
            ModelFileError,
            "attention_block_rows is 0; expected a whole number of at least 1.",
        ),
        (
            {"attention_block_rows": 4},
            ModelFileError,
            "the scores of bert.encoder.layer.0.attention.self.query have shape [4, 2]; its weight and the block size "
            "of this file make [3, 2]. The files belong to different runs.",
        ),
    ],
)
def test_settings_that_are_not_read_are_named(
    folder: Path, settings: dict[str, Any], kind: type[L0RuntimeError], message: str
) -> None:
    set_arguments(folder, **settings)
    with pytest.raises(kind) as caught:
        load(folder)
    assert str(caught.value) == f"{folder / 'sparse_args.json'}: {message}"


def test_without_the_settings_the_message_names_their_file(folder: Path) -> None:
    (folder / "sparse_args.json").unlink()
    with pytest.raises(ModelFileError) as caught:
        load(folder / "pytorch_model.bin")
    assert str(caught.value) == (
        f"{folder / 'sparse_args.json'}: no such file. Expected a configuration beside the checkpoint."
    )


def test_a_compiled_model_is_no_such_checkpoint(folder: Path) -> None:
    resave(
        folder / "pytorch_model.bin",
        lambda state: [state.pop(name) for name in list(state) if name.endswith("mask_scores")],
    )
    with pytest.raises(ModelFileError, match="holds no mask_scores: the model is compiled already, or was not pruned"):
        load(folder)
