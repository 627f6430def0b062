"""constrained_sparsity: the median rule, structured or not, and BatchNorm that skips closed channels."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.sources.made import Made, randomise


def medians(log_alpha: Tensor) -> Tensor:
    """The median of the hard-concrete distribution at temperature 2/3."""
    return (torch.sigmoid(log_alpha * 1.5) * 1.2 - 0.1).clamp(0, 1)


class L0Linear(nn.Module):
    """F.linear with gated weights: one gate per input unit, or per weight and per bias."""

    def __init__(self, inputs: int, outputs: int, structured: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.weight_log_alpha = nn.Parameter(torch.empty((inputs,) if structured else (outputs, inputs)))
        self.bias_log_alpha = None if structured else nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias if self.bias_log_alpha is None else medians(self.bias_log_alpha) * self.bias
        return F.linear(x, medians(self.weight_log_alpha) * self.weight, bias)


class L0Conv2d(nn.Module):
    """A convolution with one gate per filter, on its weights and its bias."""

    def __init__(self, inputs: int, outputs: int, kernel: int, padding: int = 0, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self.weight_log_alpha = nn.Parameter(torch.empty(outputs))
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        z = medians(self.weight_log_alpha)
        bias = None if self.bias is None else z * self.bias
        return F.conv2d(x, z.view(-1, 1, 1, 1) * self.weight, bias, padding=self.padding)


class L0BatchNorm2d(nn.BatchNorm2d):
    """BatchNorm of the open channels; the closed ones pass as they are, which is zero."""

    def forward(self, input: Tensor, z: Tensor | None = None) -> Tensor:
        assert z is not None
        return torch.where((z != 0).view(1, -1, 1, 1), super().forward(input), input)


class L0LeNet5(nn.Module):
    """convs.{0,3}, fcs.{0,2}."""

    def __init__(self, filters: tuple[int, int], hidden: int) -> None:
        super().__init__()
        first, second = filters
        self.convs = nn.Sequential(
            L0Conv2d(1, first, 5), nn.ReLU(), nn.MaxPool2d(2), L0Conv2d(first, second, 5), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.fcs = nn.Sequential(L0Linear(second * 16, hidden, True), nn.ReLU(), L0Linear(hidden, 10, True))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fcs(self.convs(x).flatten(1))
        return output


class L0Mlp(nn.Module):
    """fcs.{0,2,4}."""

    def __init__(self, widths: tuple[int, ...], structured: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [L0Linear(inputs, outputs, structured), nn.ReLU()]
        self.fcs = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fcs(x.flatten(1))
        return output


class PreActivationBlock(nn.Module):
    """BatchNorm, ReLU, gated convolution, L0 or regular BatchNorm, ReLU, convolution."""

    def __init__(self, width_in: int, width_out: int, stride: int, norm: str) -> None:
        super().__init__()
        self.batch_norm1 = nn.BatchNorm2d(width_in)
        self.conv1 = L0Conv2d(width_in, width_out, 3, 1, bias=False)
        self.batch_norm2 = L0BatchNorm2d(width_out) if norm == "L0" else nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, stride, 1, bias=False)
        self.shortcut_conv = nn.Conv2d(width_in, width_out, 1, stride, bias=False) if width_in != width_out else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.batch_norm1(x).relu()
        out = self.conv1(active)
        z = medians(self.conv1.weight_log_alpha)
        out = self.batch_norm2(out, z) if isinstance(self.batch_norm2, L0BatchNorm2d) else self.batch_norm2(out)
        output: Tensor = self.conv2(out.relu()) + (x if self.shortcut_conv is None else self.shortcut_conv(active))
        return output


class L0WideResNet(nn.Module):
    """conv1, layer{1,2,3}, batch_norm, fcout."""

    def __init__(self, widen: int, per_group: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        width = 16
        for group in (1, 2, 3):
            blocks = []
            for index in range(per_group):
                out = 8 * 2**group * widen
                blocks.append(PreActivationBlock(width, out, 2 if group > 1 and index == 0 else 1, norm))
                width = out
            self.add_module(f"layer{group}", nn.Sequential(*blocks))
        self.batch_norm = nn.BatchNorm2d(width)
        self.fcout = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for group in (1, 2, 3):
            x = self.get_submodule(f"layer{group}")(x)
        x = self.batch_norm(x).relu()
        output: Tensor = self.fcout(F.avg_pool2d(x, x.shape[2:]).flatten(1))
        return output


def make(folder: Path, small: bool = False, network: str = "lenet5") -> Made:
    """model.pt, the state dict as core_exp.py saves it. Networks: lenet5, mlp, unstructured, wrn-L0, wrn-regular."""
    arguments: dict[str, object] = {}
    if network.startswith("wrn"):
        norm = network.removeprefix("wrn-")
        net: nn.Module = L0WideResNet(1, 1, norm) if small else L0WideResNet(4, 2, norm)
        inputs, arguments = torch.rand(2, 3, 32, 32), {"options": {"batch_norm": norm}}
    elif network == "lenet5":
        net, inputs = L0LeNet5((6, 8), 20) if small else L0LeNet5((20, 50), 500), torch.rand(4, 1, 28, 28)
    else:
        widths = (20, 12, 8, 5) if small else (784, 300, 100, 10)
        net, inputs = L0Mlp(widths, network == "mlp"), torch.rand(8, widths[0])
    randomise(net, 2)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, gates in net.named_parameters():
            if name.endswith("log_alpha"):
                gates.copy_(torch.randn(gates.shape, generator=generator) * 2 - 1.5)
                if gates.dim() == 2:  # weights of whole units are gone after training without structure, too
                    gates[generator_choice(gates.shape[0], generator)] = -4.0
    path = folder / "model.pt"
    torch.save(net.state_dict(), path)
    return Made(path, net.eval(), (inputs,), arguments)


def generator_choice(count: int, generator: torch.Generator) -> Tensor:
    """A third of the indices."""
    return torch.randperm(count, generator=generator)[: count // 3]
