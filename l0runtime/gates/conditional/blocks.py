"""Where does a conditional gate sit: around a residual block, a layer of a transformer, or the rest of a network?

In these modules every block is computed and multiplied by its gate, as in training: conversion (`l0runtime convert`)
makes the ONNX file skip what is multiplied by 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from l0runtime.errors import GateParameterError
from l0runtime.gates.conditional.gate import ConditionalGate


class Conditional(nn.Module):
    """y = activation(shortcut(x) + g(x) * body(x)), with g(x) exactly 0 for the samples that skip the body.

    For a residual block, for attention or a feed-forward layer of a transformer (put its norm into `body`).

    Args:
        body: what may be skipped; its result has the shape of the shortcut's.
        gate: reads x.
        shortcut: what is always computed; None for x itself.
        activation: applied to the sum; None for none.
    """

    def __init__(
        self,
        body: nn.Module,
        gate: ConditionalGate,
        shortcut: nn.Module | None = None,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.body, self.gate, self.shortcut, self.activation = body, gate, shortcut, activation

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.gate(x)
        stream: Tensor = x if self.shortcut is None else self.shortcut(x)
        result: Tensor = stream + broadcast(z, stream.dim()) * self.body(x)
        if self.activation is not None:
            result = self.activation(result)
        return result


class EarlyExit(nn.Module):
    """y = g(x) > 0 ? rest(x) : head(x): samples that are easy take a short way out.

    While training, y = g rest(x) + (1 - g) head(x), so that both learn.

    Args:
        head: a cheap classifier on the features x.
        rest: the remaining network, with a result of the same shape.
        gate: reads x; it is 0 for samples that leave.
    """

    def __init__(self, head: nn.Module, rest: nn.Module, gate: ConditionalGate) -> None:
        super().__init__()
        self.head, self.rest, self.gate = head, rest, gate

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.gate(x)
        early: Tensor = self.head(x)
        late: Tensor = self.rest(x)
        z = broadcast(z, early.dim())
        if self.training:
            return z * late + (1 - z) * early
        chosen: Tensor = torch.where(z > 0, late, early)
        return chosen


class ConfidenceExit(nn.Module):
    """y = max softmax(head(x)) < threshold ? rest(x) : head(x): samples that the head is sure of take the short way.

    There is no gate to train: train head and rest together, on the sum of their losses (`both`), and choose the
    threshold on data that was not trained on. While training, forward gives the logits of `rest`.

    Args:
        head: a cheap classifier on the features x, giving logits [batch, classes].
        rest: the remaining network, with logits of the same shape.
        threshold: probability of the likeliest class from which on the head decides, in (0, 1].
    """

    threshold: Tensor

    def __init__(self, head: nn.Module, rest: nn.Module, threshold: float = 0.9) -> None:
        super().__init__()
        if not 0 < threshold <= 1:
            raise GateParameterError(f"ConfidenceExit: threshold is {threshold}; expected a number above 0, up to 1.")
        self.head, self.rest = head, rest
        self.register_buffer("threshold", torch.tensor(threshold))  # part of the checkpoint

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the head and of the rest, for their two losses."""
        return self.head(x), self.rest(x)

    def forward(self, x: Tensor) -> Tensor:
        early, late = self.both(x)
        if self.training:
            return late
        is_unsure = torch.softmax(early, 1).amax(1, keepdim=True) < self.threshold
        chosen: Tensor = torch.where(is_unsure, late, early)
        return chosen


def bodies_of_gates(model: nn.Module) -> dict[str, str]:
    """Qualified names of what each gate decides about, by that of the gate."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Conditional | EarlyExit):
            prefix = f"{name}." if name else ""
            found[f"{prefix}gate"] = prefix + ("body" if isinstance(module, Conditional) else "rest")
    return found


def broadcast(z: Tensor, rank: int) -> Tensor:
    """Gate values [batch] as [batch, 1, ..., 1]."""
    return z.reshape(-1, *[1] * (rank - 1))
