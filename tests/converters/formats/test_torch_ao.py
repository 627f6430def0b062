"""Files with the masks of torch.ao.pruning compute what torch computes with them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from format_agreement import assert_same, recognised
from torch import nn

from converters.sources import GatedModel, SourceOptions, load_source
from l0runtime.errors import ModelFileError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.ao.pruning import WeightNormSparsifier
    from torch.ao.pruning._experimental.pruner import SaliencyPruner


def build() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def load(path: Path, **extra: str) -> GatedModel:
    return load_source(path, SourceOptions(build, None, extra))


def sparsify() -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    net = build().eval()
    sparsifier = WeightNormSparsifier(sparsity_level=0.7, sparse_block_shape=(1, 4), zeros_per_block=4)
    sparsifier.prepare(net, [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.weight"}])
    sparsifier.step()
    return net, sparsifier.state_dict()


def prune() -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(1)
    net = build().eval()
    pruner = SaliencyPruner({})
    groups = [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.weight", "prune_bias": False}]
    pruner.prepare(net, [{**group, "sparsity_level": 0.5} for group in groups])
    pruner.step()
    return net, pruner.state_dict()


@pytest.mark.parametrize("make", [sparsify, prune])
def test_model_and_masks_in_one_file_compute_what_torch_computes(tmp_path: Path, make: Any) -> None:
    net, masks = make()
    torch.save({"net": net.state_dict(), "masks": masks, "epoch": 3}, tmp_path / "both.pth")
    assert recognised(tmp_path / "both.pth") == "torch-ao"
    x = torch.randn(5, 12)
    gated = load(tmp_path / "both.pth")
    with torch.no_grad():
        assert_same(gated, (x,), net(x))
    assert [group.layer for group in gated.gates] == ["0", "2"]
    if make is prune:
        assert [(group.units, group.kept) for group in gated.gates] == [(16, 8), (8, 4)]


def test_masks_in_a_file_of_their_own_are_an_option(tmp_path: Path) -> None:
    net, masks = sparsify()
    torch.save(net.state_dict(), tmp_path / "model.pth")
    torch.save(masks, tmp_path / "masks.pth")
    x = torch.randn(5, 12)
    with torch.no_grad():
        assert_same(load(tmp_path / "model.pth", sparsifier=str(tmp_path / "masks.pth")), (x,), net(x))


def test_a_model_saved_without_its_masks_is_refused(tmp_path: Path) -> None:
    """model.state_dict() leaves the masks out, so that the unpruned weights would be taken for the model."""
    net, masks = sparsify()
    assert not any("mask" in name for name in net.state_dict())
    path = tmp_path / "model.pth"
    torch.save(net.state_dict(), path)
    with pytest.raises(ModelFileError) as caught:
        load(path)
    assert str(caught.value) == (
        f"{path}: holds parametrized weights, but not their masks, which model.state_dict() leaves out. Save "
        "sparsifier.state_dict() too and name that file with --set sparsifier=FILE, or save the model after "
        "sparsifier.squash_mask()."
    )
    torch.save(masks, path)
    with pytest.raises(ModelFileError) as caught:
        load(path)
    assert str(caught.value) == (
        f"{path}: holds a sparsifier's masks, but no state dict of the model. Save both in one file: "
        'torch.save({"model": model.state_dict(), "sparsifier": sparsifier.state_dict()}, path).'
    )


def test_masks_of_another_model_are_named(tmp_path: Path) -> None:
    net, masks = sparsify()
    path = tmp_path / "both.pth"
    mask = masks["state"].pop("2.weight")
    torch.save([0], path)
    torch.save({"model": net.state_dict(), "sparsifier": masks}, path)
    with pytest.raises(ModelFileError, match=r"2\.weight is parametrized, but the sparsifier holds no mask for it"):
        load(path)
    masks["state"]["2.weight"], masks["state"]["9.weight"] = mask, mask
    torch.save({"model": net.state_dict(), "sparsifier": masks}, path)
    with pytest.raises(ModelFileError, match=r"holds a mask for 9\.weight, which the model does not have\.$"):
        load(path)
    del masks["state"]["9.weight"]
    masks["state"]["2.weight"] = {"mask": torch.ones(3)}
    torch.save({"model": net.state_dict(), "sparsifier": masks}, path)
    with pytest.raises(ModelFileError, match=r"the mask of 2\.weight has shape \[3\], 2\.weight itself \[8, 16\]\."):
        load(path)
