"""Formats of torch itself and our own: the masked model is the module that the file was written from."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import prune

from benchmarks.sources.made import Made, randomise
from l0runtime.gates import Gate, LeNet5, save

_SELF = "written by the library itself, weights random"


def build_small_resnet() -> nn.Module:
    """Convolutions, BatchNorm and a residual block; input [batch, 3, 32, 32]."""
    return SmallResNet()


class SmallResNet(nn.Module):
    """Stem, one residual block of 64 channels with an inner width of 128, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        self.conv1, self.norm1 = nn.Conv2d(64, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128)
        self.conv2, self.norm2 = nn.Conv2d(128, 64, 3, padding=1), nn.BatchNorm2d(64)
        self.hidden, self.last = nn.Linear(64, 256), nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))
        logits: torch.Tensor = self.last(torch.relu(self.hidden(x.mean((2, 3)))))
        return logits


def _network() -> tuple[nn.Module, tuple[torch.Tensor]]:
    net = build_small_resnet()
    randomise(net, 21)
    return net.eval(), (torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(22)),)


_FACTORY = f"{__name__}:build_small_resnet"


def make_own(folder: Path) -> Made:
    """gates.save of a LeNet-5 with closed gates."""
    torch.manual_seed(20)
    net = LeNet5()
    with torch.no_grad():
        for gate in net.modules():
            if isinstance(gate, Gate):
                gate.log_alpha.copy_(torch.randn(gate.size) * 3 - 2)
    save(net, folder / "gated.safetensors")
    return Made(folder / "gated.safetensors", net.eval(), (torch.rand(32, 1, 28, 28),), origin=_SELF)


def make_prune(folder: Path) -> Made:
    """torch.nn.utils.prune: structured masks on two layers, an unstructured one that empties whole rows."""
    net, inputs = _network()
    prune.ln_structured(net.conv1, "weight", 0.5, n=2, dim=0)
    mask = torch.rand_like(net.hidden.weight).ge(0.3).float()
    mask[::2] = 0
    prune.custom_from_mask(net.hidden, "weight", mask)
    prune.custom_from_mask(net.hidden, "bias", mask.any(1).float())
    torch.save(net.state_dict(), folder / "pruned.pth")
    arguments = {"model": _FACTORY, "example_inputs": inputs}
    return Made(folder / "pruned.pth", net, inputs, arguments, _SELF)


def make_ao(folder: Path) -> Made:
    """torch.ao.pruning: half of the blocks of two weights, the masks in the sparsifier's state."""
    from torch.ao.pruning import WeightNormSparsifier

    net, inputs = _network()
    sparsifier = WeightNormSparsifier(sparsity_level=0.5, sparse_block_shape=(1, 64), zeros_per_block=64)
    sparsifier.prepare(net, [{"tensor_fqn": "hidden.weight"}])
    sparsifier.step()
    torch.save({"model": net.state_dict(), "sparsifier": sparsifier.state_dict()}, folder / "ao.pth")
    arguments = {"model": _FACTORY, "example_inputs": inputs}
    return Made(folder / "ao.pth", net.eval(), inputs, arguments, _SELF)


def _zeroed() -> tuple[nn.Module, tuple[torch.Tensor]]:
    net, inputs = _network()
    with torch.no_grad():
        net.conv1.weight[::2] = 0
        net.hidden.weight[::2] = 0
        net.hidden.bias[::2] = 0
    return net, inputs


def make_state_dict(folder: Path) -> Made:
    """A state dict with rows set to zero by hand, as torch.save writes it."""
    net, inputs = _zeroed()
    torch.save({"epoch": 3, "state_dict": net.state_dict()}, folder / "state.pth")
    return Made(folder / "state.pth", net, inputs, {"model": _FACTORY, "example_inputs": inputs}, _SELF)


def make_safetensors(folder: Path) -> Made:
    """The same parameters as safetensors."""
    net, inputs = _zeroed()
    safetensors.torch.save_file(net.state_dict(), folder / "state.safetensors")
    return Made(folder / "state.safetensors", net, inputs, {"model": _FACTORY, "example_inputs": inputs}, _SELF)


def make_pt2(folder: Path) -> Made:
    """torch.export.save of the zeroed network, the batch free."""
    net, inputs = _zeroed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(net, inputs, dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, folder / "program.pt2")
    return Made(folder / "program.pt2", net, inputs, {}, _SELF)


def make_onnx(folder: Path) -> Made:
    """torch.onnx.export of the zeroed network."""
    net, inputs = _zeroed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net, inputs, dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
        )
    assert program is not None
    program.save(str(folder / "zeros.onnx"))
    return Made(folder / "zeros.onnx", net, inputs, {}, _SELF)


MAKERS: dict[str, Callable[[Path], Made]] = {
    "l0runtime": make_own,
    "torch-prune": make_prune,
    "torch-ao": make_ao,
    "state-dict (torch.save)": make_state_dict,
    "state-dict (safetensors)": make_safetensors,
    "pt2": make_pt2,
    "onnx": make_onnx,
}
