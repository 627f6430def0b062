"""Files with the masks of torch.nn.utils.prune compute what torch computes with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from format_agreement import assert_same, recognised, resave
from torch import nn
from torch.nn.utils import prune

from converters.sources import GatedModel, SourceOptions, load_source
from l0runtime.errors import ModelFileError


def build() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10), nn.ReLU(), nn.Linear(10, 4)
    )


def load(path: Path) -> GatedModel:
    return load_source(path, SourceOptions(build, (torch.ones(1, 3, 6, 6),)))


@pytest.fixture
def pruned() -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


def check(pruned: nn.Module, tmp_path: Path) -> GatedModel:
    torch.save(pruned.state_dict(), tmp_path / "model.pth")
    assert recognised(tmp_path / "model.pth") == "torch-prune"
    x = torch.randn(3, 3, 6, 6)
    gated = load(tmp_path / "model.pth")
    with torch.no_grad():
        assert_same(gated, (x,), pruned(x))
    return gated


def test_structured_masks_close_whole_filters(pruned: nn.Module, tmp_path: Path) -> None:
    prune.ln_structured(pruned[0], "weight", 0.5, n=2, dim=0)
    prune.random_structured(pruned[3], "weight", 0.25, dim=1)
    gated = check(pruned, tmp_path)
    assert [(group.layer, group.units, group.kept) for group in gated.gates] == [("0", 8, 4), ("3", 10, 10)]


def test_unstructured_masks_on_weights_and_biases_count_filters_that_they_empty(
    pruned: nn.Module, tmp_path: Path
) -> None:
    mask = torch.rand(10, 128).round()
    mask[:3] = 0
    prune.custom_from_mask(pruned[3], "weight", mask)
    prune.l1_unstructured(pruned[3], "bias", 0.5)
    prune.l1_unstructured(pruned[5], "weight", 0.5)
    gated = check(pruned, tmp_path)
    kept = {group.layer: group.kept for group in gated.gates}
    assert kept == {"3": 7, "3.bias": 5, "5": 4}


def test_several_prunings_of_one_tensor_are_one_mask(pruned: nn.Module, tmp_path: Path) -> None:
    prune.ln_structured(pruned[0], "weight", 0.25, n=2, dim=0)
    prune.l1_unstructured(pruned[0], "weight", 0.5)
    check(pruned, tmp_path)


def test_global_pruning_and_safetensors_work_too(pruned: nn.Module, tmp_path: Path) -> None:
    prune.global_unstructured([(pruned[0], "weight"), (pruned[3], "weight")], prune.L1Unstructured, amount=0.7)
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(pruned.state_dict(), path)
    assert recognised(path) == "torch-prune"
    x = torch.randn(3, 3, 6, 6)
    with torch.no_grad():
        assert_same(load(path), (x,), pruned(x))


def test_a_mask_that_is_missing_or_of_another_shape_is_named(pruned: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    prune.l1_unstructured(pruned[3], "weight", 0.5)
    prune.l1_unstructured(pruned[5], "weight", 0.5)
    torch.save(pruned.state_dict(), path)
    resave(path, lambda state: state.pop("3.weight_mask"))
    with pytest.raises(ModelFileError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: holds 3.weight_orig, but not 3.weight_mask. The file is damaged."
    resave(path, lambda state: state.update({"3.weight_mask": torch.ones(10)}))
    with pytest.raises(ModelFileError) as caught:
        load(path)
    assert str(caught.value) == (
        f"{path}: the mask of 3.weight has shape [10], 3.weight itself [10, 128]. "
        "The file is damaged, or the mask belongs to another model."
    )
