"""A module takes parameters of other shapes in place, and still knows its own sizes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from l0runtime.errors import L0RuntimeError, ModelFileError, UnsupportedModelError
from l0runtime.gates import Gate, GatedConv2d, LeNet5, gates_of, load, save
from l0runtime.gates.resizing import resize, shrink_to_fit


def test_layers_follow_their_tensors_and_parameters_stay_the_same_objects() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.PReLU(8), nn.Conv2d(8, 8, 3, groups=8), nn.Linear(6, 5)
    )
    before = list(net.parameters())
    tensors = {name: tensor[:5] for name, tensor in net.state_dict().items() if tensor.dim()}
    resize(net, tensors | {"4.weight": torch.zeros(5, 4)}, {"3": 5})
    assert all(one is other for one, other in zip(before, net.parameters(), strict=True))
    assert (net[0].out_channels, net[1].num_features, net[2].num_parameters) == (5, 5, 5)
    assert (net[3].groups, net[3].in_channels, net[3].out_channels) == (5, 5, 5)
    assert (net[4].in_features, net[4].out_features) == (4, 5)
    net[:4].eval()(torch.zeros(1, 3, 9, 9))


def test_a_bias_that_did_not_exist_is_added() -> None:
    layer = nn.Sequential(nn.Linear(4, 3, bias=False))
    resize(layer, {"0.bias": torch.ones(3)})
    assert isinstance(layer[0].bias, nn.Parameter)
    assert torch.equal(layer(torch.zeros(1, 4)), torch.ones(1, 3))


def test_a_layer_of_torch_with_widths_of_its_own_is_refused() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        resize(nn.Sequential(nn.LayerNorm(8)), {"0.weight": torch.ones(5)})
    assert str(caught.value) == "0: LayerNorm cannot get other widths."


def test_shrinking_to_stored_shapes_also_counts_depthwise_groups() -> None:
    narrow = nn.Sequential(GatedConv2d(3, 5, 1), nn.Conv2d(5, 5, 3, groups=5))
    whole = nn.Sequential(GatedConv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8))
    shrink_to_fit(whole, narrow.state_dict())
    whole.load_state_dict(narrow.state_dict())
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(whole.eval()(x), narrow.eval()(x))


def test_a_wider_tensor_is_refused() -> None:
    with pytest.raises(ModelFileError) as caught:
        shrink_to_fit(nn.Linear(4, 3), {"weight": torch.zeros(3, 5)})
    assert str(caught.value) == (
        "weight has shape [3, 5]; its architecture has [3, 4], of which only a part can have been removed. "
        "The file is damaged, or of another network."
    )


def narrowed(path: Path) -> nn.Module:
    net = LeNet5((6, 8), 20)
    tensors = {"conv1.weight": net.conv1.weight[:4], "conv1.bias": net.conv1.bias[:4]}
    tensors |= {"conv1.gate.log_alpha": net.conv1.gate.log_alpha[:4], "conv2.weight": net.conv2.weight[:, :4]}
    resize(net, tensors)
    save(net, path)
    return net.eval()


def test_a_narrowed_network_is_saved_with_a_header_that_says_so(tmp_path: Path) -> None:
    net = narrowed(tmp_path / "narrow.safetensors")
    with safetensors.safe_open(tmp_path / "narrow.safetensors", "pt") as file:
        header = file.metadata()["l0runtime"]
    assert '"version": 3' in header
    assert '"narrowed": true' in header
    found = load(tmp_path / "narrow.safetensors")
    assert {name: gate.size for name, gate in gates_of(found).items()} == {
        "conv1": 4,
        "conv2": 8,
        "fc1": 128,
        "fc2": 20,
    }
    assert isinstance(found.conv1.gate, Gate)
    x = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(found(x), net(x))


def test_a_network_at_its_full_widths_keeps_the_first_version(tmp_path: Path) -> None:
    save(LeNet5((6, 8), 20), tmp_path / "whole.safetensors")
    with safetensors.safe_open(tmp_path / "whole.safetensors", "pt") as file:
        assert '"version": 1' in file.metadata()["l0runtime"]


def test_damaged_narrowed_files_give_a_clear_error_or_a_network(tmp_path: Path) -> None:
    path, rng = tmp_path / "narrow.safetensors", random.Random(0)
    narrowed(path)
    whole = path.read_bytes()
    tensors = safetensors.torch.load(whole)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    failures = 0
    for _ in range(60):
        name = rng.choice(list(tensors))
        value = tensors[name]
        odd = [value[:1], value[None], value.flatten(), value[:0], torch.zeros(3), torch.zeros(2, 900), value.int()]
        safetensors.torch.save_file(tensors | {name: rng.choice(odd).contiguous().clone()}, path, metadata)
        try:
            load(path)
        except L0RuntimeError:
            failures += 1
    assert failures
