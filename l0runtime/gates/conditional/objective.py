"""What does training add to the loss, so that gates save what they should and do not all decide alike?

A target for the average execution rate of each gate, or for the average work of the whole model; and a regulariser on
each batch, by which no gate fires always or never.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from l0runtime.errors import NoGateError, OptionError
from l0runtime.gates.conditional.blocks import bodies_of_gates
from l0runtime.gates.conditional.gate import ConditionalGate

TargetUnit = Literal["rate", "macs"]


def conditional_gates(model: nn.Module) -> dict[str, ConditionalGate]:
    """The conditional gates of a model by qualified name, in the order of its modules."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ConditionalGate)}


class ConditionalPenalty:
    """Penalty of a training step: target of the execution, and variety of the decisions.

        weight * mean_g (rate_g - target)^2                       unit "rate"
        weight * (sum_g macs_g rate_g / sum_g macs_g - target)^2  unit "macs"
        + shaping * sum_g distance of the batch's probabilities from the prior

    rate_g is the share of the batch for which evaluation would run the block, with the gradient of the probabilities.
    The random decisions of training are not what a target is about: a gate of probability 0.3 for every sample would be
    at its target of 0.3 by them, and never run once it is evaluated. For "macs" a block within another counts where
    both run.

    Args:
        model: has conditional gates; called in train() mode before each call of the penalty.
        target: rate in [0, 1], for all gates or by qualified name of the gate; for "macs" the share of the work of all
            blocks.
        unit: "rate" for each gate by itself, "macs" for the model as a whole.
        macs: work of each block by the qualified name of its gate; needed for "macs", see `block_macs`.
        weight, shaping: strengths of the two terms; a shaping of 0 leaves the second one out.
    Raises:
        NoGateError: the model has no conditional gate.
        OptionError: a target outside [0, 1], a gate without a target or without macs, a negative strength.
    """

    def __init__(
        self,
        model: nn.Module,
        target: float | Mapping[str, float],
        *,
        unit: TargetUnit = "rate",
        macs: Mapping[str, int] | None = None,
        weight: float = 2.0,
        shaping: float = 0.0,
    ) -> None:
        self.gates = conditional_gates(model)
        if not self.gates:
            raise NoGateError("ConditionalPenalty: the model has no conditional gate; use Conditional or EarlyExit.")
        if unit not in ("rate", "macs"):
            raise OptionError(f"ConditionalPenalty: unit is {unit!r}; expected 'rate' or 'macs'.")
        targets = dict(target) if isinstance(target, Mapping) else dict.fromkeys(self.gates, float(target))
        if unit == "macs" and (isinstance(target, Mapping) or macs is None):
            raise OptionError("ConditionalPenalty: unit 'macs' takes one target, and macs of each block (block_macs).")
        for name in self.gates:
            if name not in targets or (unit == "macs" and name not in (macs or {})):
                raise OptionError(f"ConditionalPenalty: gate {name} has no target, or no macs; give one per gate.")
        if any(not 0 <= value <= 1 for value in targets.values()) or weight < 0 or shaping < 0:
            raise OptionError(
                "ConditionalPenalty: targets must lie in [0, 1], weight and shaping must not be negative."
            )
        self.targets, self.unit, self.weight, self.shaping = targets, unit, weight, shaping
        self.macs = dict(macs or {})
        bodies = bodies_of_gates(model)
        self._around = {
            name: [other for other, body in bodies.items() if name.startswith(f"{body}.")] for name in self.gates
        }

    def __call__(self) -> Tensor:
        """The penalty of the last batch as a scalar tensor."""
        decisions = {name: gate.take_decisions() for name, gate in self.gates.items()}
        total = self._miss({name: made.settled for name, made in decisions.items()}) * self.weight
        if self.shaping:
            distances = [shape_distance(made.probabilities) for made in decisions.values()]
            total = total + self.shaping * torch.stack(distances).sum()
        return total

    def _miss(self, runs: Mapping[str, Tensor]) -> Tensor:
        """Squared distance from the target, of decisions [batch] by gate."""
        if self.unit == "rate":
            return torch.stack([(runs[name].mean() - self.targets[name]).square() for name in runs]).mean()
        work = sum(self.macs[name] for name in runs)
        spent = torch.stack([self._reached(name, runs).mean() * (self.macs[name] / max(work, 1)) for name in runs])
        return (spent.sum() - next(iter(self.targets.values()))).square()

    def _reached(self, name: str, runs: Mapping[str, Tensor]) -> Tensor:
        """Of each sample, whether the block runs, and those around it."""
        reached = runs[name]
        for outer in self._around[name]:
            reached = reached * runs[outer]
        return reached


def shape_distance(probabilities: Tensor, a: float = 0.6, b: float = 0.4) -> Tensor:
    """How far a batch's probabilities are from a prior that has mass at both ends; 0 to 1.

        mean_i (F(p_(i)) - i / (batch + 1))^2,   F(p) = 1 - (1 - p^a)^b

    with p_(i) in ascending order: the Cramer-von Mises distance to Kumaraswamy's distribution, which is close to the
    Beta distribution and has this closed F. A gate that always decides alike has all F near 0 or all near 1, about 1/3
    away.

    Args:
        probabilities: P(the block runs) of each sample, [batch].
        a, b: of the prior; both below 1 give a U shape.
    Source: Bejnordi, Blankevoort & Welling, "Batch-shaping for learning conditional channel gated networks", 2020,
        with Beta(0.6, 0.4).
    """
    margin = torch.finfo(probabilities.dtype).eps * 8  # the density is infinite at both ends
    ordered = probabilities.sort().values.clamp(margin, 1 - margin)
    cumulative = 1 - (1 - ordered.pow(a)).pow(b)
    count = len(ordered)
    expected = torch.arange(1, count + 1, dtype=ordered.dtype, device=ordered.device) / (count + 1)
    return (cumulative - expected).square().mean()
