"""Let NNI 3.0 prune a small convolutional network and write its files.

    pip install nni==3.0 'setuptools<80'
    python benchmarks/sources/library/nni_masks.py OUT

Writes wrapped.pth (state dict of the wrapped model), masks.pth, model.pth (state dict after unwrapping) and
expected.pth (an input and NNI's output on it, while wrapped).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from nni.compression.pruning import L1NormPruner
from torch import nn


def build(widths: tuple[int, int] = (8, 6)) -> nn.Module:
    """The network before pruning; input [batch, 3, 8, 8]."""
    first, second = widths
    return nn.Sequential(
        nn.Conv2d(3, first, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(first, second, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * 36, 5),
    )


def main(folder: Path) -> None:
    """Prune half of the filters by their L1 norm."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    net, x = build(), torch.randn(2, 3, 8, 8)
    pruner = L1NormPruner(net, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}])
    _, masks = pruner.compress()
    with torch.no_grad():
        expected = net.eval()(x)
    torch.save(net.state_dict(), folder / "wrapped.pth")
    torch.save(masks, folder / "masks.pth")
    pruner.unwrap_model()
    torch.save(net.state_dict(), folder / "model.pth")
    torch.save((x, expected), folder / "expected.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
