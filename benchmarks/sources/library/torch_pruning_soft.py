"""Let Torch-Pruning 1.6 prune a small convolutional network softly: it picks the groups, the weights are set to zero.

    pip install torch-pruning==1.6.1
    python benchmarks/sources/library/torch_pruning_soft.py OUT

Writes soft.pth (state dict) and expected.pth (an input and the output on it). As in the library's own
tests/test_soft_pruning.py, group.prune() is never called.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch_pruning as tp
from torch import nn


def build() -> nn.Module:
    """The network before pruning; input [batch, 3, 8, 8]."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


def main(folder: Path) -> None:
    """Half of the channels by magnitude."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    net, x = build(), torch.randn(2, 3, 8, 8)
    for child in net.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.running_mean.normal_()
            child.bias.data.normal_()
    net.eval()
    importance = tp.importance.MagnitudeImportance(p=2)
    pruner = tp.pruner.MagnitudePruner(net, x, importance=importance, pruning_ratio=0.5, ignored_layers=[net[-1]])
    for group in pruner.step(interactive=True):
        for dependency, indices in group:
            layer, handler = dependency.target.module, dependency.handler
            if handler in (tp.prune_conv_in_channels, tp.prune_linear_in_channels):
                layer.weight.data[:, indices] *= 0
            elif handler in (tp.prune_conv_out_channels, tp.prune_batchnorm_out_channels):
                layer.weight.data[indices] *= 0
                layer.bias.data[indices] *= 0
    with torch.no_grad():
        expected = net(x)
    torch.save(net.state_dict(), folder / "soft.pth")
    torch.save((x, expected), folder / "expected.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
