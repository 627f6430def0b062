"""Small models with every kind of place for gates, made of torch's own layers alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """conv1, bn1, ReLU, conv2, bn2, added to the input, ReLU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + x)


class SmallResNet(nn.Module):
    """A stem and two residual blocks of 6 channels (inner widths 4 and 5), then 3 classes; inputs [batch, 2, h, w]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.block1 = ResidualBlock(6, 4)
        self.block2 = ResidualBlock(6, 5)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        logits: Tensor = self.fc(self.block2(self.block1(x)).mean((2, 3)))
        return logits


class SmallTransformer(nn.Module):
    """Position embeddings, one pre-norm encoder block of 2 heads with 4 values each and 10 neurons, 3 classes.

    Inputs [batch, 5, 3]; nn.MultiheadAttention uses its output projection without calling it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        self.norm1 = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm2 = nn.LayerNorm(8)
        self.up = nn.Linear(8, 10)
        self.down = nn.Linear(10, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.position
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode, with parameters and running statistics that are nowhere 0 or 1 by initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return model.eval()


def resnet() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A small residual network with example inputs."""
    return randomised(SmallResNet()), (torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(1)),)


def transformer() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A small transformer with example inputs."""
    return randomised(SmallTransformer()), (torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1)),)
