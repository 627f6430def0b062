"""Which networks does ConvNet-AIG train, with its gates deciding by argmax?

Plain torch modules whose widths are read from the parameters' shapes; parameter names are those of the checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

_PLACE = re.compile(r"layer(?P<layer>\d+)\.(?P<index>\d+)\.")


class AdaptiveBlock(nn.Module):
    """relu(shortcut(x) + run(x) * body(x)), body of two 3x3 convolutions, or of 1x1, 3x3 and 1x1.

    run(x) is 1 where logit 1 of a small network on the mean over space exceeds logit 0, else 0; a tie skips, as argmax
    takes the first of two equal ones.
    """

    def __init__(self, width_in: int, widths: Sequence[int], stride: int, hidden: int, shortcut: bool) -> None:
        super().__init__()
        self.count = len(widths)
        kernels, strided = ((3, 3), 1) if self.count == 2 else ((1, 3, 1), 2)
        width = width_in
        for number, (width_out, kernel) in enumerate(zip(widths, kernels, strict=True), start=1):
            step = stride if number == strided else 1
            self.add_module(f"conv{number}", nn.Conv2d(width, width_out, kernel, step, kernel // 2, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm2d(width_out))
            width = width_out
        self.shortcut = nn.Sequential()
        if shortcut:
            self.shortcut = nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.fc1 = nn.Conv2d(width_in, hidden, 1)
        self.fc1bn = nn.BatchNorm2d(hidden)  # the original's BatchNorm1d took four axes in the torch of its day
        self.fc2 = nn.Conv2d(hidden, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.fc2(torch.relu(self.fc1bn(self.fc1(x.mean((2, 3), keepdim=True)))))
        runs = (logits[:, 1:] > logits[:, :1]).to(x.dtype)  # [batch, 1, 1, 1]
        inner = x
        for number in range(1, self.count + 1):
            inner = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(inner))
            if number < self.count:
                inner = torch.relu(inner)
        return torch.relu(self.shortcut(x) + inner * runs)


class AdaptiveResNet(nn.Module):
    """ConvNet-AIG for CIFAR (3x3 stem, three layers, 32x32 images) or for ImageNet (7x7 stem, four layers, 224x224).

    Args:
        stem: channels and kernel of the first convolution.
        layers: for each layer, for each block, the widths of its convolutions.
        shortcuts: for each layer, for each block, whether its shortcut has a convolution.
        hidden: width of the gates' hidden layer.
        classes: number of classes.
    """

    def __init__(
        self,
        stem: tuple[int, int],
        layers: Sequence[Sequence[Sequence[int]]],
        shortcuts: Sequence[Sequence[bool]],
        hidden: int,
        classes: int,
    ) -> None:
        super().__init__()
        width, kernel = stem
        self.is_large = kernel == 7
        self.conv1 = nn.Conv2d(3, width, kernel, 2 if self.is_large else 1, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.count = len(layers)
        for number, (blocks, with_convolution) in enumerate(zip(layers, shortcuts, strict=True), start=1):
            built = []
            for index, (widths, shortcut) in enumerate(zip(blocks, with_convolution, strict=True)):
                stride = 2 if number > 1 and index == 0 else 1
                built.append(AdaptiveBlock(width, widths, stride, hidden, shortcut))
                width = widths[-1]
            self.add_module(f"layer{number}", nn.Sequential(*built))
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        if self.is_large:
            x = F.max_pool2d(x, 3, 2, 1)
        for number in range(1, self.count + 1):
            x = self.get_submodule(f"layer{number}")(x)
        x = F.avg_pool2d(x, 7, 1) if self.is_large else F.avg_pool2d(x, 8)
        output: Tensor = self.linear(x.flatten(1))
        return output


def adaptive_resnet_of(state: Mapping[str, Tensor]) -> tuple[AdaptiveResNet, tuple[int, ...]]:
    """The network whose parameters these are, and the shape of one image.

    Raises:
        KeyError, IndexError, ValueError: the parameters are not those of such a network.
    """
    width, _, kernel, _ = state["conv1.weight"].shape
    count = {3: 3, 7: 4}.get(kernel)
    if count is None:
        raise ValueError(f"a {kernel}x{kernel} stem; the known ones are 3x3 (CIFAR) and 7x7 (ImageNet)")
    places = [match for name in state if (match := _PLACE.match(name))]
    layers: list[list[list[int]]] = []
    shortcuts: list[list[bool]] = []
    for number in range(1, count + 1):
        blocks = 1 + max((int(place["index"]) for place in places if int(place["layer"]) == number), default=-1)
        if not 1 <= blocks <= len(places):  # an index out of a damaged file would make a network without end
            raise ValueError(f"{blocks} blocks in layer{number}")
        prefixes = [f"layer{number}.{index}" for index in range(blocks)]
        layers.append(
            [
                [state[f"{prefix}.conv{n}.weight"].shape[0] for n in (1, 2, 3) if f"{prefix}.conv{n}.weight" in state]
                for prefix in prefixes
            ]
        )
        shortcuts.append([f"{prefix}.shortcut.0.weight" in state for prefix in prefixes])
    odd = next((widths for blocks in layers for widths in blocks if len(widths) not in (2, 3)), None)
    if odd is not None:
        raise ValueError(f"a block of {len(odd)} convolutions")
    hidden = state["layer1.0.fc1.weight"].shape[0]
    net = AdaptiveResNet((width, kernel), layers, shortcuts, hidden, state["linear.weight"].shape[0])
    side = 224 if net.is_large else 32
    return net, (3, side, side)
