"""Which networks do the published L0 code bases train, without their gates?

Plain torch modules whose widths are read from the parameters' shapes; the gates of a checkpoint are multiplied into
the weights (folding.py). Parameter names are those of constrained_sparsity; `*_of` functions raise KeyError,
IndexError or ValueError where the parameters are not those of the network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

ACTIVATIONS: dict[str, type[nn.Module]] = {"ReLU": nn.ReLU, "Tanh": nn.Tanh, "LeakyReLU": nn.LeakyReLU}
_POOLS = 2  # of LeNet-5, each halves the image
_BLOCK = re.compile(r"layer(?P<group>[1-4])\.(?P<index>\d+)\.")


class Mlp(nn.Module):
    """Linear layers with an activation between them; `name` is the attribute that holds them.

    Input [batch, ...] with as many numbers per example as the first layer reads; output [batch, classes], logits.
    """

    def __init__(self, name: str, widths: Sequence[int], bias: bool = True, activation: str = "ReLU") -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out, bias), ACTIVATIONS[activation]()]
        self.add_module(name, nn.Sequential(*layers[:-1]))
        self._name = name

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.get_submodule(self._name)(x.flatten(1))
        return output


class LeNet5(nn.Module):
    """Two convolutions without padding, an activation and 2x2 max-pooling after each, then two linear layers.

    Input [batch, channels, side, side]; output [batch, classes], logits.
    """

    def __init__(
        self,
        channels: Sequence[int],
        kernels: Sequence[int],
        hidden: Sequence[int],
        bias: bool = True,
        activation: str = "ReLU",
    ) -> None:
        super().__init__()
        convs: list[nn.Module] = []
        for (width_in, width_out), kernel in zip(pairwise(channels), kernels, strict=True):
            convs += [nn.Conv2d(width_in, width_out, kernel, bias=bias), ACTIVATIONS[activation](), nn.MaxPool2d(2)]
        self.convs = nn.Sequential(*convs)
        self.fcs = nn.Sequential(
            nn.Linear(hidden[0], hidden[1], bias), ACTIVATIONS[activation](), nn.Linear(hidden[1], hidden[2], bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fcs(self.convs(x).flatten(1))
        return output


class PreActivationBlock(nn.Module):
    """BatchNorm, activation, 3x3 convolution, twice; the stride is on the second convolution."""

    def __init__(self, width_in: int, width_out: int, stride: int, bias: bool, norm: bool, activation: str) -> None:
        super().__init__()
        self.batch_norm1 = nn.BatchNorm2d(width_in)
        self.act1 = ACTIVATIONS[activation]()
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1, bias=bias)
        self.batch_norm2 = nn.BatchNorm2d(width_out) if norm else nn.Identity()
        self.act2 = ACTIVATIONS[activation]()
        self.conv2 = nn.Conv2d(width_out, width_out, 3, stride, 1, bias=bias)
        if width_in != width_out:
            self.shortcut_conv: nn.Conv2d | None = nn.Conv2d(width_in, width_out, 1, stride, bias=bias)
        else:
            self.shortcut_conv = None

    def forward(self, x: Tensor) -> Tensor:
        active = self.act1(self.batch_norm1(x))
        stream = x if self.shortcut_conv is None else self.shortcut_conv(active)
        output: Tensor = self.conv2(self.act2(self.batch_norm2(self.conv1(active)))) + stream
        return output


class WideResNet(nn.Module):
    """Three groups of pre-activation blocks; input [batch, 3, 32, 32], output [batch, classes], logits."""

    def __init__(
        self, per_group: int, widths: Sequence[int], classes: int, bias: bool, norm: bool, activation: str = "ReLU"
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=bias)
        width_in = widths[0]
        for group, width in enumerate(widths[1:], start=1):
            blocks = []
            for index in range(per_group):
                stride = 2 if group > 1 and index == 0 else 1
                blocks.append(PreActivationBlock(width_in, width, stride, bias, norm, activation))
                width_in = width
            self.add_module(f"layer{group}", nn.Sequential(*blocks))
        self.batch_norm = nn.BatchNorm2d(width_in)
        self.activation = ACTIVATIONS[activation]()
        self.fcout = nn.Linear(width_in, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for group in (1, 2, 3):
            x = self.get_submodule(f"layer{group}")(x)
        output: Tensor = self.fcout(self.activation(self.batch_norm(x)).mean((2, 3)))
        return output


class ResidualBlock(nn.Module):
    """The basic (two 3x3 convolutions) or bottleneck (1x1, 3x3, 1x1) block of a ResNet, with BatchNorm or without."""

    def __init__(self, width_in: int, widths: Sequence[int], stride: int, shortcut: bool, norm: bool, activation: str):
        super().__init__()
        self.count = len(widths)
        kernels = (3, 3) if self.count == 2 else (1, 3, 1)
        strided = 1 if self.count == 2 else 2  # torchvision's choice
        width = width_in
        for number, (width_out, kernel) in enumerate(zip(widths, kernels, strict=True), start=1):
            step = stride if number == strided else 1
            self.add_module(f"conv{number}", nn.Conv2d(width, width_out, kernel, step, kernel // 2, bias=False))
            self.add_module(f"batch_norm{number}", nn.BatchNorm2d(width_out) if norm else nn.Identity())
            width = width_out
        self.act_fn = ACTIVATIONS[activation]()
        self.shortcut_conv: nn.Module | None = None
        if shortcut:
            self.shortcut_conv = nn.Conv2d(width_in, width, 1, stride, bias=False)
            self.shortcut_bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        stream = x if self.shortcut_conv is None else self.shortcut_bn(self.shortcut_conv(x))
        for number in range(1, self.count + 1):
            x = self.get_submodule(f"batch_norm{number}")(self.get_submodule(f"conv{number}")(x))
            if number < self.count:
                x = self.act_fn(x)
        output: Tensor = self.act_fn(x + stream)
        return output


class ResNet(nn.Module):
    """ResNet-18 (3x3 stem of stride 2, no pooling) or ResNet-50 (7x7 stem, max-pooling), four groups of blocks.

    Args:
        stem: channels and kernel of the first convolution.
        groups: per group, per block, the widths of its convolutions.
    """

    def __init__(
        self,
        stem: tuple[int, int],
        groups: Sequence[Sequence[Sequence[int]]],
        classes: int,
        norm: bool,
        activation: str,
    ) -> None:
        super().__init__()
        width, kernel = stem
        self.conv1 = nn.Conv2d(3, width, kernel, 2, kernel // 2, bias=False)
        self.batch_norm1 = nn.BatchNorm2d(width)
        self.act1 = ACTIVATIONS[activation]()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if kernel == 7 else nn.Identity()
        for number, blocks in enumerate(groups, start=1):
            built = []
            for index, widths in enumerate(blocks):
                stride = 2 if number > 1 and index == 0 else 1
                shortcut = stride != 1 or width != widths[-1]
                built.append(ResidualBlock(width, widths, stride, shortcut, norm, activation))
                width = widths[-1]
            self.add_module(f"layer{number}", nn.Sequential(*built))
        self.fcout = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.act1(self.batch_norm1(self.conv1(x))))
        for number in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{number}")(x)
        output: Tensor = self.fcout(x.mean((2, 3)))
        return output


def widths_of_mlp(state: Mapping[str, Tensor], name: str) -> list[int]:
    """Widths of the linear layers `name.0`, `name.2`, ..., whose weights are [out, in]."""
    count = sum(re.fullmatch(rf"{re.escape(name)}\.\d+\.weight", key) is not None for key in state)
    layers = [state[f"{name}.{2 * index}.weight"] for index in range(count)]
    return [layers[0].shape[1], *(layer.shape[0] for layer in layers)]


def lenet5_of(state: Mapping[str, Tensor], activation: str = "ReLU") -> tuple[LeNet5, tuple[int, ...]]:
    """The LeNet-5 whose parameters these are, and the shape of one image."""
    convs = [state[f"convs.{index}.weight"] for index in (0, 3)]
    hidden, last = (state[f"fcs.{index}.weight"] for index in (0, 2))
    channels = [convs[0].shape[1], convs[0].shape[0], convs[1].shape[0]]
    kernels = [conv.shape[2] for conv in convs]
    side = round((hidden.shape[1] / channels[2]) ** 0.5)
    if side * side * channels[2] != hidden.shape[1]:
        raise ValueError(f"{hidden.shape[1]} inputs of fcs.0 are no square image of {channels[2]} channels")
    for kernel in reversed(kernels):
        side = side * _POOLS + kernel - 1
    net = LeNet5(channels, kernels, [hidden.shape[1], *last.shape[::-1]], "convs.0.bias" in state, activation)
    return net, (channels[0], side, side)


def wide_resnet_of(state: Mapping[str, Tensor], activation: str = "ReLU") -> tuple[WideResNet, tuple[int, ...]]:
    """The Wide ResNet whose parameters these are, and the shape of one image."""
    per_group = 1 + max(int(match["index"]) for name in state if (match := _BLOCK.match(name)))
    widths = [state["conv1.weight"].shape[0]]
    widths += [state[f"layer{group}.0.conv1.weight"].shape[0] for group in (1, 2, 3)]
    classes = state["fcout.weight"].shape[0]
    has_norm = "layer1.0.batch_norm2.weight" in state
    return WideResNet(per_group, widths, classes, "conv1.bias" in state, has_norm, activation), (3, 32, 32)


def resnet_of(state: Mapping[str, Tensor], activation: str = "ReLU") -> tuple[ResNet, tuple[int, ...]]:
    """The ResNet whose parameters these are, and the shape of one image."""
    groups: list[list[list[int]]] = []
    for group in (1, 2, 3, 4):
        found = [match for name in state if (match := _BLOCK.match(name)) and int(match["group"]) == group]
        blocks = 1 + max(int(match["index"]) for match in found)
        prefixes = [f"layer{group}.{index}" for index in range(blocks)]
        groups.append(
            [
                [state[f"{prefix}.conv{n}.weight"].shape[0] for n in (1, 2, 3) if f"{prefix}.conv{n}.weight" in state]
                for prefix in prefixes
            ]
        )
    width, _, kernel, _ = state["conv1.weight"].shape
    if kernel not in (3, 7) or any(len(widths) not in (2, 3) for blocks in groups for widths in blocks):
        raise ValueError(f"a {kernel}x{kernel} stem or a block of another number of convolutions")
    has_norm = "layer1.0.batch_norm1.weight" in state
    net = ResNet((width, kernel), groups, state["fcout.weight"].shape[0], has_norm, activation)
    side = 224 if kernel == 7 else 64
    return net, (3, side, side)


def example_image(shape: Sequence[int]) -> tuple[Tensor]:
    """One image of random pixels in [0, 1)."""
    return (torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)),)
