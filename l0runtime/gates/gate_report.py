"""What do the gates of a model keep, how decided are they, and what does the network cost with them?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from l0runtime.errors import NoGateError
from l0runtime.gates.attached import AttachedGate, gates_in
from l0runtime.gates.gate import Gate
from l0runtime.gates.penalty import gates_of

UNDECIDED = (0.1, 0.9)  # P(z != 0) between these: neither closed nor open for training's purposes


@dataclass(frozen=True)
class GateLine:
    """One gate vector.

    Args:
        name, kind: as in `Place`; kind is "layer" for the gate of a GatedLinear, GatedConv2d or a lone Gate.
        units, kept: gates, and those that the evaluation rule does not close.
        expected: mean P(z != 0).
        undecided: gates with 0.1 < P(z != 0) < 0.9.
        is_frozen: whether the values are fixed.
    """

    name: str
    kind: str
    units: int
    kept: int
    expected: float
    undecided: int
    is_frozen: bool


@dataclass(frozen=True)
class GateReport:
    """All gate vectors of a model, and its cost as fractions of the ungated network's.

    Args:
        lines: one per gate vector.
        expected_cost: cost -> fraction under the training distribution; empty for gates without a trace.
        kept_cost: cost -> fraction of what the evaluation rule keeps, which the compact model will have.
        refused: name -> why no gates stand there.
    """

    lines: tuple[GateLine, ...]
    expected_cost: dict[str, float]
    kept_cost: dict[str, float]
    refused: dict[str, str]

    def __str__(self) -> str:
        width = max(len(line.name) for line in self.lines)
        rows = [
            f"{line.name:<{width}}  {line.kind:<6}  {line.kept:>5} of {line.units:<5}  P(open) {line.expected:.3f}"
            + (f"  {line.undecided} undecided" if line.undecided else "")
            + ("  frozen" if line.is_frozen else "")
            for line in self.lines
        ]
        rows += [
            f"{cost}: {100 * kept:.1f} % kept, {100 * self.expected_cost[cost]:.1f} % expected"
            for cost, kept in self.kept_cost.items()
        ]
        return "\n".join(rows)


@torch.no_grad()
def report(model: nn.Module) -> GateReport:
    """What the gates keep, line by line; `print` shows a table.

    Raises:
        NoGateError: the model has no gates.
    """
    gates = gates_of(model)
    if not gates:
        raise NoGateError(f"{type(model).__name__}: has no gates; call attach first, or build it of gated layers.")
    attached = gates_in(model)
    expected: dict[str, float] = {}
    kept: dict[str, float] = {}
    if attached is not None and attached.costs:
        shares, kept_shares = attached.shares(), attached.kept_shares()
        expected = {name: float(cost.fraction(shares)) for name, cost in attached.costs.items()}
        kept = {name: float(cost.fraction(kept_shares)) for name, cost in attached.costs.items()}
    lines = tuple(_line(name, gate) for name, gate in gates.items())
    return GateReport(lines, expected, kept, {} if attached is None else attached.refused)


def _line(name: str, gate: Gate) -> GateLine:
    open_ = gate.probability_open()
    low, high = UNDECIDED
    undecided = int(((open_ > low) & (open_ < high)).sum())
    if isinstance(gate, AttachedGate):
        place = gate.place
        return GateLine(
            place.name, place.kind, gate.size, gate.kept_count(), float(open_.mean()), undecided, gate.is_frozen
        )
    return GateLine(name, "layer", gate.size, gate.kept_count(), float(open_.mean()), undecided, False)
