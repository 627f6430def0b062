"""What does a format's example consist of: the file as its code base writes it, and the masked model beside it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Made:
    """A checkpoint and the model that it came from.

    Args:
        path: the file or folder to convert.
        masked: the model in eval mode as the original code computes it, gates and masks evaluated in its forward.
        inputs: positional inputs, batch first.
        arguments: further arguments of `converters.convert`.
        origin: how the file came about, in words.
    """

    path: Path
    masked: nn.Module
    inputs: tuple[Tensor, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    origin: str = "written by hand after the original code"


def randomise(module: nn.Module, seed: int) -> None:
    """Weights that keep activations of order 1, BatchNorm statistics of a trained network, LayerNorms off 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for child in module.modules():
            for name, parameter in [*child.named_parameters(recurse=False), *child.named_buffers(recurse=False)]:
                if not parameter.is_floating_point():
                    continue
                noise = torch.randn(parameter.shape, generator=generator)
                if name == "running_var":
                    parameter.copy_(noise.abs() + 0.5)
                elif parameter.dim() > 1:
                    parameter.copy_(noise * (2 / parameter[0].numel()) ** 0.5)
                elif name == "weight":
                    parameter.copy_(1 + 0.2 * noise)
                else:
                    parameter.copy_(0.2 * noise)
