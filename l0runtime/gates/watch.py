"""Which known failures of training with gates is a run heading for?

slow        at the pace so far no gate will reach its closing threshold before the run ends (the usual outcome of one
            learning rate for weights and gates under SGD)
dying       a layer is about to lose all of its units, after which the network is a constant
undecided   at the end many gates are neither open nor closed, so that the evaluation rule decides the accuracy
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from l0runtime.gates.evaluation import closing_threshold
from l0runtime.gates.gate import Gate
from l0runtime.gates.gate_report import UNDECIDED
from l0runtime.gates.penalty import gates_of

_ENOUGH_SHARE = 0.25  # of the run, after which a pace can be told
_DYING_SHARE = 0.05  # expected share of open gates
_UNDECIDED_SHARE = 0.1


class GateWarning(UserWarning):
    """Training with gates is heading for a known failure."""


@dataclass(frozen=True)
class GateProblem:
    """One failure ahead.

    Args:
        kind: see the module.
        name: the gate vector, or "" for all of them.
        message: what was found and what to do.
    """

    kind: Literal["slow", "dying", "undecided"]
    name: str
    message: str


class GateWatch:
    """Remembers where the gates of a model began, and says what they are heading for.

    Args:
        model: with gates of any kind.
        steps: optimizer steps of the whole run.
    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        self.gates = {name: gate for name, gate in gates_of(model).items() if gate.rule != "top-k"}
        self.steps = steps
        self.start = {name: gate.log_alpha.detach().clone() for name, gate in self.gates.items()}
        self.units = {name: gate.size for name, gate in self.gates.items()}  # at first; gates may be removed later
        self._told: set[tuple[str, str]] = set()

    @torch.no_grad()
    def problems(self, step: int) -> list[GateProblem]:
        """What is wrong after `step` steps; "slow" from a quarter of the run on, "undecided" at its end."""
        found = self._slow(step) if self.steps * _ENOUGH_SHARE <= step < self.steps else []
        for name, gate in self.gates.items():
            if gate.log_alpha.requires_grad and gate.size > 1:
                found.extend(_dying(name, gate))
        if step >= self.steps:
            found.extend(self._undecided())
        return found

    def narrow(self, kept: Mapping[str, Tensor]) -> None:
        """Gates were removed from the model: of each vector named, only the indices `kept` are left, int64 [n]."""
        for name, index in kept.items():
            if name in self.start:
                self.start[name] = self.start[name][index]

    def warn(self, step: int) -> None:
        """Issue each problem once as a GateWarning."""
        for problem in self.problems(step):
            if (problem.kind, problem.name) not in self._told:
                self._told.add((problem.kind, problem.name))
                warnings.warn(problem.message, GateWarning, stacklevel=3)

    def _slow(self, step: int) -> list[GateProblem]:
        moving = {name: gate for name, gate in self.gates.items() if gate.log_alpha.requires_grad}
        if not moving or any(gate.kept_count() < self.units[name] for name, gate in moving.items()):
            return []
        ahead = {name: _steps_needed(gate, self.start[name], step) for name, gate in moving.items()}
        name = min(ahead, key=lambda key: ahead[key])
        if ahead[name] <= self.steps - step:
            return []
        gate = moving[name]
        lowest = float(gate.log_alpha.min())
        pace = "none of them has moved down" if ahead[name] == float("inf") else f"it would take {ahead[name]:.0f} more"
        return [
            GateProblem(
                "slow",
                "",
                f"No gate will close: after {step} of {self.steps} steps the nearest, in {name}, has log_alpha "
                f"{lowest:.2f} and closes at {closing_threshold(gate.constants, gate.rule):.2f}; at this pace {pace}. "
                "Give the gates a larger learning rate of their own (param_groups), or raise the penalty.",
            )
        ]

    def _undecided(self) -> list[GateProblem]:
        total = count = 0
        for gate in self.gates.values():
            if gate.log_alpha.requires_grad:
                open_ = gate.probability_open()
                total += gate.size
                count += int(((open_ > UNDECIDED[0]) & (open_ < UNDECIDED[1])).sum())
        if count <= _UNDECIDED_SHARE * total:
            return []
        return [
            GateProblem(
                "undecided",
                "",
                f"{count} of {total} gates are undecided at the end (0.1 < P(z != 0) < 0.9), so the evaluation rule "
                "decides what the network computes. Train longer, or fix the gates and fine-tune (TargetCost.settle, "
                "freeze).",
            )
        ]


def _steps_needed(gate: Gate, start: Tensor, step: int) -> float:
    """Steps until the first gate of a vector closes if each keeps its mean pace; infinite where none moves down."""
    distance = gate.log_alpha - closing_threshold(gate.constants, gate.rule)
    pace = (start - gate.log_alpha) / step
    ahead = torch.where(pace > 0, distance / pace.clamp(min=1e-30), torch.inf)
    return float(ahead.min())


def _dying(name: str, gate: Gate) -> list[GateProblem]:
    kept, expected = gate.kept_count(), float(gate.probability_open().mean())
    if kept > 1 and expected >= _DYING_SHARE:
        return []
    return [
        GateProblem(
            "dying",
            name,
            f"{name}: {kept} of {gate.size} units are left and {100 * expected:.1f} % are expected to be open; without "
            "units it gives a constant. Lower the penalty or its share for this layer, or warm up longer.",
        )
    ]
