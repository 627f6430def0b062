"""l0-arm: dense layers gated on their inputs, convolutions on their outputs, fractional gates above a threshold."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.sources.made import Made, randomise


class ArmDense(nn.Module):
    """(x * z) W + b, W [in, out]; z = sigmoid(7 phi) where at least 0.5, else 0."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.empty(inputs, outputs))
        self.z_phi = nn.Parameter(torch.empty(inputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return (x * final_gates(self.z_phi)) @ self.weights + self.bias


class ArmConv(nn.Module):
    """z * (W conv x + b), W [out, in, k, k]."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.z_phi = nn.Parameter(torch.empty(outputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weights, self.bias) * final_gates(self.z_phi).view(1, -1, 1, 1)


def final_gates(phi: Tensor) -> Tensor:
    """use_t_in_testing: the probability itself, or 0 below one half."""
    pi = torch.sigmoid(7 * phi)
    return torch.where(pi < 0.5, torch.zeros_like(pi), pi)


class ArmLeNet5(nn.Module):
    """convs.{0,3}, fcs.{0,2} with ReLU and 2x2 max-pooling."""

    def __init__(self, filters: tuple[int, int], hidden: int) -> None:
        super().__init__()
        first, second = filters
        self.convs = nn.Sequential(
            ArmConv(1, first, 5), nn.ReLU(), nn.MaxPool2d(2), ArmConv(first, second, 5), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.fcs = nn.Sequential(ArmDense(second * 16, hidden), nn.ReLU(), ArmDense(hidden, 10))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fcs(self.convs(x).flatten(1))
        return output


class ArmMlp(nn.Module):
    """output.{0,2,4} with ReLU."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [ArmDense(inputs, outputs), nn.ReLU()]
        self.output = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.output(x)
        return output


def make(folder: Path, small: bool = False, network: str = "lenet5") -> Made:
    """<epoch>.model, the state dict as main.py saves it."""
    if network == "mlp":
        widths = (20, 12, 8, 5) if small else (784, 300, 100, 10)
        net: nn.Module = ArmMlp(widths)
        inputs = torch.rand(8, widths[0])
    else:
        net = ArmLeNet5((6, 8), 20) if small else ArmLeNet5((20, 50), 500)
        inputs = torch.rand(4, 1, 28, 28)
    randomise(net, 1)
    with torch.no_grad():
        for name, phi in net.named_parameters():
            if name.endswith("z_phi"):
                phi.copy_(torch.randn(phi.shape, generator=torch.Generator().manual_seed(len(name))) * 0.3 - 0.1)
    path = folder / "190.model"
    torch.save(net.state_dict(), path)
    return Made(path, net.eval(), (inputs,))
