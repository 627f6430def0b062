"""The small files that pruning libraries wrote, with their own outputs on stored inputs; kept beside the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.sources.made import Made

_FILES = Path(__file__).parents[3] / "tests" / "converters" / "formats" / "files"


class Recorded(nn.Module):
    """What the library computed on the stored inputs."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.output


def build_nni() -> nn.Module:
    """The network of nni_masks.py before pruning."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)]
    return nn.Sequential(*layers)


def build_torch_pruning() -> nn.Module:
    """The network of torch_pruning_soft.py before pruning."""
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


def _made(file: str, expected: str, factory: str | None, library: str) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        *inputs, output = torch.load(_FILES / expected, weights_only=True)
        arguments = {} if factory is None else {"model": f"{__name__}:{factory}", "example_inputs": tuple(inputs)}
        origin = f"written by {library}, small, against its own outputs"
        return Made(_FILES / file, Recorded(output), tuple(inputs), arguments, origin)

    return make


MAKERS: dict[str, Callable[[Path], Made]] = {
    "nni": _made("nni/wrapped.pth", "nni/expected.pth", "build_nni", "NNI 3.0"),
    "Torch-Pruning (soft)": _made(
        "torch_pruning/soft.pth", "torch_pruning/expected.pth", "build_torch_pruning", "Torch-Pruning 1.6.1"
    ),
    **{
        f"nn-pruning ({setting})": _made(
            f"nn_pruning/{setting}", f"nn_pruning/{setting}/expected.pth", None, "nn_pruning 0.1.2"
        )
        for setting in ("topk-blocks", "sigmoid-1d-alt", "l0-and-1d")
    },
}
