"""ConvNet-AIG: every block is computed and multiplied by a one-hot choice between its two logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.sources.made import Made, randomise

Convolutions = Sequence[tuple[int, int, int, int]]
"""(in, out, kernel, stride) of each convolution of a block."""


class AigBlock(nn.Module):
    """conv1, bn1, ... with a shortcut where the shape changes, and fc1, fc1bn, fc2 for the gate."""

    def __init__(self, convolutions: Convolutions, stride: int) -> None:
        super().__init__()
        self.depth = len(convolutions)
        for number, (inputs, outputs, kernel, step) in enumerate(convolutions, start=1):
            setattr(self, f"conv{number}", nn.Conv2d(inputs, outputs, kernel, step, kernel // 2, bias=False))
            setattr(self, f"bn{number}", nn.BatchNorm2d(outputs))
        inputs, outputs = convolutions[0][0], convolutions[-1][1]
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.fc1, self.fc1bn, self.fc2 = nn.Conv2d(inputs, 16, 1), nn.BatchNorm1d(16), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        w = F.avg_pool2d(x, x.size(2))
        w = F.relu(self.fc1bn(self.fc1(w).flatten(1)))[:, :, None, None]
        w = self.fc2(w)
        choice = torch.zeros_like(w).scatter_(1, w.argmax(1, keepdim=True), 1.0)
        out = x
        for number in range(1, self.depth + 1):
            out = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(out))
            if number < self.depth:
                out = F.relu(out)
        return F.relu(self.shortcut(x) + out * choice[:, 1].unsqueeze(1))


class AigResNet(nn.Module):
    """conv1, bn1, layer1 ..., linear: for CIFAR with basic blocks, for ImageNet with bottlenecks."""

    def __init__(self, blocks: Sequence[int], width: int, large: bool, classes: int) -> None:
        super().__init__()
        self.large = large
        self.conv1 = nn.Conv2d(3, width, 7 if large else 3, 2 if large else 1, 3 if large else 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs, planes = width, width
        for number, count in enumerate(blocks, start=1):
            layer = []
            for index in range(count):
                stride = 2 if number > 1 and index == 0 else 1
                if large:
                    shape = [(inputs, planes, 1, 1), (planes, planes, 3, stride), (planes, 4 * planes, 1, 1)]
                else:
                    shape = [(inputs, planes, 3, stride), (planes, planes, 3, 1)]
                layer.append(AigBlock(shape, stride))
                inputs = shape[-1][1]
            setattr(self, f"layer{number}", nn.Sequential(*layer))
            planes *= 2
        self.layers = len(blocks)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        if self.large:
            x = F.max_pool2d(x, 3, 2, 1)
        for number in range(1, self.layers + 1):
            x = getattr(self, f"layer{number}")(x)
        x = F.avg_pool2d(x, 7, stride=1) if self.large else F.avg_pool2d(x, 8)
        output: Tensor = self.linear(x.view(x.size(0), -1))
        return output


def images(rows: int, side: int, seed: int = 0) -> Tensor:
    """Images that differ in brightness, colour and contrast, by which gates can tell them apart."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.randn(rows, 3, 1, 1, generator=generator)
    contrast = torch.rand(rows, 1, 1, 1, generator=generator) * 2
    return torch.randn(rows, 3, side, side, generator=generator) * contrast + level


def make(folder: Path, small: bool = False, network: str = "cifar") -> Made:
    """checkpoint.pth.tar, as train.py and train_img.py write it: names of DataParallel, metadata beside them."""
    large = network == "imagenet"
    if large:
        net, side = AigResNet((1, 1, 1, 1) if small else (3, 4, 6, 3), 8 if small else 64, True, 10), 224
    else:
        net, side = AigResNet((2, 2, 2) if small else (18, 18, 18), 8 if small else 16, False, 10), 32
    randomise(net, 2)
    inputs = images(4, side)
    _balance(net.eval(), images(16, side, seed=1))
    state = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save(
        {"epoch": 350, "state_dict": state, "best_prec1": torch.tensor(93.6)},
        folder / "checkpoint.pth.tar",
    )
    return Made(folder / "checkpoint.pth.tar", net, (inputs,))


def _balance(net: AigResNet, x: Tensor) -> None:
    """Shift the gates' logits so that every block runs for about half of the images."""

    def shift(block: nn.Module, arguments: tuple[Tensor]) -> None:
        assert isinstance(block, AigBlock)
        hidden = F.relu(block.fc1bn(block.fc1(F.avg_pool2d(arguments[0], arguments[0].size(2))).flatten(1)))
        logits = block.fc2(hidden[:, :, None, None]).flatten(1)
        assert block.fc2.bias is not None
        block.fc2.bias[0] += (logits[:, 1] - logits[:, 0]).median()

    with torch.no_grad():
        handles = [m.register_forward_pre_hook(shift) for m in net.modules() if isinstance(m, AigBlock)]
        net(x)
        for handle in handles:
            handle.remove()
