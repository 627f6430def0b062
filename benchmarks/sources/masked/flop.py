"""FLOP: rank-1 components of factorised layers, input units of plain ones, dimensions of an adaptive embedding."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.sources.made import Made, randomise


class HardConcrete(nn.Module):
    """The n - E[L0] smallest are 0, the rest sigmoid(0.8 log_alpha); temperature 1."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.empty(count))

    def forward(self) -> Tensor:
        expected = torch.sigmoid(self.log_alpha - math.log(0.1 / 1.1)).sum().item()
        zeros = round(self.log_alpha.numel() - expected)
        soft = torch.sigmoid(self.log_alpha * 0.8)
        _, smallest = torch.topk(soft, k=zeros, largest=False)
        return soft.index_fill(0, smallest, 0.0)


class ProjectedLinear(nn.Module):
    """Before gating: linear2(linear1(x))."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(inputs, rank, bias=False)
        self.linear2 = nn.Linear(rank, outputs)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.linear2(self.linear1(x))
        return output


class HardConcreteProjectedLinear(nn.Module):
    """x weight (z weight_proj) + bias."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, rank))
        self.weight_proj = nn.Parameter(torch.empty(rank, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.mask = HardConcrete(rank)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight @ (self.weight_proj * self.mask().view(-1, 1)) + self.bias


class HardConcreteLinear(nn.Module):
    """x (z weight) + bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.mask = HardConcrete(inputs)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight * self.mask().view(-1, 1)) + self.bias


class AdaptiveEmbedding(nn.Module):
    """Transformer-XL's embedding: clusters of tokens with narrower and narrower tables, projected to one width.

    Tokens outside a cluster are set to 0 by a mask, so that the number of tokens in it need not be known on export.
    """

    def __init__(self, tokens: int, cutoffs: list[int], width: int, gated: bool) -> None:
        super().__init__()
        ends = [0, *cutoffs, tokens]
        self.ranges = list(itertools.pairwise(ends))
        self.width = width
        sizes = [width // 2**index for index in range(len(self.ranges))]
        self.emb_layers = nn.ModuleList(
            nn.Embedding(end - start, size) for (start, end), size in zip(self.ranges, sizes, strict=True)
        )
        self.emb_projs = nn.ParameterList(nn.Parameter(torch.empty(width, size)) for size in sizes)
        self.masks = nn.ModuleList(HardConcrete(size) for size in sizes) if gated else None

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor | float = 0.0
        for index, (start, end) in enumerate(self.ranges):
            table = self.emb_layers[index].weight
            if self.masks is not None:
                table = table * self.masks[index]().view(1, -1)
            inside = (tokens >= start) & (tokens < end)
            rows = F.embedding((tokens - start).clamp(0, end - start - 1), table)
            output = output + F.linear(rows, self.emb_projs[index]) * inside[..., None]
        assert isinstance(output, Tensor)
        return output * self.width**0.5


class Network(nn.Module):
    """Tokens [batch, length] to one score per class and position."""

    def __init__(self, gated: bool, small: bool) -> None:
        super().__init__()
        width, hidden = (16, 24) if small else (256, 1024)
        self.embed = AdaptiveEmbedding(60, [20, 40], width, gated)
        linear = HardConcreteProjectedLinear if gated else ProjectedLinear
        self.up = linear(width, hidden, width // 2)
        self.down = linear(hidden, width, width // 2)
        self.out = HardConcreteLinear(width, 10) if gated else nn.Linear(width, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.out(self.down(self.up(self.embed(tokens)).relu()).tanh())
        return output


def build_plain() -> nn.Module:
    """The model as it was before make_hard_concrete, at full size."""
    return Network(False, False)


def build_small() -> nn.Module:
    """The same, small."""
    return Network(False, True)


def make(folder: Path, small: bool = False) -> Made:
    """A state dict after make_hard_concrete."""
    net = Network(True, small)
    randomise(net, 4)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, gates in net.named_parameters():
            if name.endswith("log_alpha"):
                gates.copy_(torch.randn(gates.shape, generator=generator) * 1.5 - 2)
    path = folder / "model.pt"
    torch.save(net.state_dict(), path)
    tokens = torch.randint(0, 60, (2, 12) if small else (8, 64), generator=generator)
    factory = f"{__name__}:{'build_small' if small else 'build_plain'}"
    return Made(path, net.eval(), (tokens,), {"model": factory, "example_inputs": (tokens,)})
