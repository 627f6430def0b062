"""Which small residual network do the gate benchmarks train on the digits, and how is its compact model judged?"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import l0runtime
from converters import convert
from l0runtime.measurement import count_cost


class BasicBlock(nn.Module):
    """ResNet's basic block: conv1, bn1, ReLU, conv2, bn2, added to the (projected) input, ReLU."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width_out)
        self.shortcut: nn.Module = nn.Identity()
        if width_in != width_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width_out, 1, stride, bias=False), nn.BatchNorm2d(width_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class SmallResNet(nn.Module):
    """A stem and four basic blocks of w, w, 2w and 2w channels (w = 16); inputs [batch, 1, 8, 8], 10 classes."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        w, v = width, 2 * width
        self.stem = nn.Conv2d(1, w, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(w)
        self.blocks = nn.Sequential(BasicBlock(w, w, 1), BasicBlock(w, w, 1), BasicBlock(w, v, 2), BasicBlock(v, v, 1))
        self.fc = nn.Linear(v, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = self.blocks(F.relu(self.bn(self.stem(x))))
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


def judge(model: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, Any]:
    """Convert a trained model and measure the compact file itself: its cost, its error, its difference.

    Returns:
        macs_percent, parameters_percent: of the compact file, against the gated file's; error_percent of the compact
        file on the given examples; difference: largest difference from the gated file, of the outputs' scale.
    """
    shapes = {"x": tuple(inputs[:1].shape)}
    with tempfile.TemporaryDirectory() as folder:
        gated, compact = Path(folder) / "gated.onnx", Path(folder) / "compact.onnx"
        report = convert(model, compact, example_inputs=(inputs[:2],), gated_output=gated)
        before, after = count_cost(gated, shapes=shapes), count_cost(compact, shapes=shapes)
        session = l0runtime.load(str(compact), device="cpu")
        logits = np.asarray(session(inputs.numpy()))
    wrong = int((logits.reshape(len(labels), -1).argmax(1) != labels.numpy()).sum())
    return {
        "macs_percent": round(100 * after.macs / before.macs, 2),
        "parameters_percent": round(100 * after.parameters / before.parameters, 2),
        "error_percent": round(100 * wrong / len(labels), 2),
        "difference": report.verification.largest,
        "macs": after.macs,
    }


def versions() -> dict[str, str]:
    """What the figures were measured with."""
    import platform

    import onnxruntime

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "threads": str(torch.get_num_threads()),
    }
