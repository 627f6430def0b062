"""Files that NNI itself wrote, and files of NNI 2's layout, compute what NNI computes with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from format_agreement import FILES, assert_same, recognised, resave
from torch import nn

from converters.sources import GatedModel, SourceOptions, load_source
from l0runtime.errors import ModelFileError, OptionError, UnsupportedModelError


def build() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)]
    return nn.Sequential(*layers), (torch.zeros(1, 3, 8, 8),)


def load(path: Path, format: str | None = None, **extra: str) -> GatedModel:
    return load_source(path, SourceOptions(build, None, extra), format)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(FILES / "nni", tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_every_file_of_nni_3_gives_what_nni_computed(folder: Path) -> None:
    x, expected = torch.load(folder / "expected.pth", weights_only=True)
    assert recognised(folder / "wrapped.pth") == recognised(folder / "masks.pth") == "nni"
    wrapped = load(folder / "wrapped.pth")
    assert_same(wrapped, (x,), expected)
    assert [(group.layer, group.units, group.kept) for group in wrapped.gates] == [("0", 8, 4), ("2", 6, 3)]
    separate = load(folder / "masks.pth", weights=str(folder / "model.pth"))
    assert_same(separate, (x,), expected)
    assert separate.notes == ("weights from model.pth, masks from masks.pth",)
    assert_same(load(folder / "model.pth", "nni", masks=str(folder / "masks.pth")), (x,), expected)


def test_a_wrapped_model_of_nni_2_gives_masked_weights(folder: Path) -> None:
    """PrunerModuleWrapper: weight and weight_mask, and the module with the values last computed with."""
    x, expected = torch.load(folder / "expected.pth", weights_only=True)
    old = {}
    for name, tensor in torch.load(folder / "wrapped.pth", weights_only=True).items():
        layer, _, parameter = name.rpartition(".")
        if "._nni_wrapper" in name:
            old[f"{layer.removesuffix('._nni_wrapper')}.{parameter}"] = tensor
        else:
            old[f"{layer}.{'' if layer == '5' else 'module.'}{parameter}"] = tensor if layer == "5" else tensor * 7
    torch.save(old, folder / "old.pth")
    assert recognised(folder / "old.pth") == "nni"
    assert_same(load(folder / "old.pth"), (x,), expected)


def test_masks_alone_ask_for_the_weights(folder: Path) -> None:
    path = folder / "masks.pth"
    with pytest.raises(OptionError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: holds NNI's masks alone. Name the weights: --set weights=FILE."


def test_masks_of_activations_are_refused_unless_they_are_ones(folder: Path) -> None:
    path = folder / "masks.pth"
    resave(path, lambda masks: masks["2"].update({"_output_0": torch.ones(6)}))
    load(path, weights=str(folder / "model.pth"))
    resave(path, lambda masks: masks["2"].update({"_output_0": torch.zeros(6)}))
    with pytest.raises(UnsupportedModelError) as caught:
        load(path, weights=str(folder / "model.pth"))
    assert str(caught.value) == (
        f"{path}: 2._output_0 masks an activation, not a parameter. Let NNI speed the model up (ModelSpeedup), or "
        "export the masked model to ONNX and convert that."
    )


def test_scores_that_take_part_in_the_forward_are_refused(folder: Path) -> None:
    path = folder / "wrapped.pth"
    resave(path, lambda state: state.update({"2._nni_wrapper.weight_mvp_score": torch.zeros(6)}))
    with pytest.raises(UnsupportedModelError, match="takes part in the forward of NNI's pruner, not the mask alone"):
        load(path)


def test_masks_of_another_model_are_named(folder: Path) -> None:
    path, weights = folder / "masks.pth", str(folder / "model.pth")
    resave(path, lambda masks: masks["2"].update({"weight": torch.ones(6, 8, 3, 2)}))
    with pytest.raises(ModelFileError, match=r"the mask of 2\.weight has shape \[6, 8, 3, 2\], 2\.weight itself"):
        load(path, weights=weights)
    resave(path, lambda masks: masks.update({"7": {"weight": torch.ones(1)}}))
    resave(path, lambda masks: masks.pop("2"))
    with pytest.raises(ModelFileError, match=r"holds a mask for 7\.weight, which the weights do not have\.$"):
        load(path, weights=weights)
