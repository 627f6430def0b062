"""What does LLM-Shearing's LLaMA compute, written so that sub-layers can be absent and hidden dimensions few?

Parameter names are those of llmshearing's LlamaModel. RMSNorm before attention and MLP, rotary positions (halves, base
10000), SwiGLU, no biases, causal attention without a padding mask.

Source: llmshearing/models/composer_llama.py, its plain attention.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

_ROTARY_BASE = 10000.0
_EXAMPLE = (2, 12)  # batch and length of the example input


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a LLaMA; `skipped` names absent sub-layers, such as "3.attn" and "3.mlp"."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    head_width: int
    intermediate: int
    epsilon: float
    skipped: frozenset[str] = field(default_factory=frozenset)


def example_inputs(shape: LlamaShape) -> tuple[Tensor]:
    """Random tokens, [batch, length]."""
    return (torch.randint(0, shape.vocabulary, _EXAMPLE, generator=torch.Generator().manual_seed(0)),)


class Llama(nn.Module):
    """Input token ids [batch, length] of int64, output logits [batch, length, vocabulary]."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        blocks = [_Block(shape, index) for index in range(shape.layers)]
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(shape.vocabulary, shape.hidden),
                "blocks": nn.ModuleList(blocks),
                "ln_f": nn.RMSNorm(shape.hidden, shape.epsilon),
                "output": nn.Linear(shape.hidden, shape.vocabulary, bias=False),
            }
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        x: Tensor = self.transformer["wte"](input_ids)
        for block in self.transformer["blocks"].children():
            x = block(x)
        output: Tensor = self.transformer["output"](self.transformer["ln_f"](x))
        return output


class _Block(nn.Module):
    def __init__(self, shape: LlamaShape, index: int) -> None:
        super().__init__()
        self.ln_1 = self.attn = self.ln_2 = self.mlp = None
        if f"{index}.attn" not in shape.skipped:
            self.ln_1, self.attn = nn.RMSNorm(shape.hidden, shape.epsilon), _Attention(shape)
        if f"{index}.mlp" not in shape.skipped:
            self.ln_2, self.mlp = nn.RMSNorm(shape.hidden, shape.epsilon), _Mlp(shape)

    def forward(self, x: Tensor) -> Tensor:
        if self.attn is not None and self.ln_1 is not None:
            x = x + self.attn(self.ln_1(x))
        if self.mlp is not None and self.ln_2 is not None:
            x = x + self.mlp(self.ln_2(x))
        return x


class _Attention(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.heads, self.head_width = shape.heads, shape.head_width
        inner = shape.heads * shape.head_width
        self.wq, self.wk, self.wv = (nn.Linear(shape.hidden, inner, bias=False) for _ in range(3))
        self.out_proj = nn.Linear(inner, shape.hidden, bias=False)
        frequencies = _ROTARY_BASE ** -(torch.arange(0, shape.head_width, 2).float() / shape.head_width)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:  # [batch, heads, length, head_width]
            return y.reshape(*y.shape[:2], self.heads, self.head_width).transpose(1, 2)

        query, key = self._rotate(split(self.wq(x))), self._rotate(split(self.wk(x)))
        scores = query @ key.transpose(-1, -2) / self.head_width**0.5
        length = x.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        weights = torch.softmax(scores.masked_fill(future, torch.finfo(scores.dtype).min), -1)
        output: Tensor = self.out_proj((weights @ split(self.wv(x))).transpose(1, 2).flatten(2))
        return output

    def _rotate(self, x: Tensor) -> Tensor:
        frequencies = self.get_buffer("frequencies")
        positions = torch.arange(x.shape[2], device=x.device, dtype=frequencies.dtype)
        angles = positions[:, None] * frequencies  # [length, head_width / 2]
        angles = torch.cat([angles, angles], -1)
        first, second = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


class _Mlp(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(shape.hidden, shape.intermediate, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return output
