"""How does training reach the size that was asked for, rather than the one that a lambda happens to give?

The user names a target: a fraction t of the network's cost (multiply-accumulates, parameters, or latency by a table).
The loss gets the term

    u * c,      c = expected cost as a fraction,      u = multiplier + proportional * error,
                                                      error = kept cost - target of this step

whose multiplier grows by `rate * error` at each step and starts again from 0 once the target is met (what has built up
would go on closing gates); a network that is too small is pushed open by the proportional part. What drives the
multiplier is the cost of what the evaluation rule keeps, the compact model's own, while the gradient flows through the
expected cost, which is differentiable. So the compact model meets the target, not merely the random one of training.
The target of a step falls linearly from 1 to t while the gates learn what matters, after a warm-up without pressure.

Sources: the two-player game with a proxy constraint of Cotter et al. 2019; restarts of the multiplier for
hard-concrete gates, Gallego-Posada et al. 2022; the linear ramp, Wang et al. 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from l0runtime.errors import NoGateError, OptionError, UnsupportedModelError
from l0runtime.gates.attached import AttachedGate, AttachedGates, gates_in
from l0runtime.gates.cost import Cost
from l0runtime.gates.evaluation import closing_threshold
from l0runtime.gates.gate import LOG_ALPHA_LIMIT
from l0runtime.gates.latency_table import LatencyTable

_MOST_TRIED = 500  # gates tried one by one once the threshold stands
_SETTLED_MARGIN = 0.1  # how far beyond its threshold a gate is put that `settle` opens or closes


class TargetCost:
    """A constraint on the cost of the compact model, to be added to the loss: `loss + objective()`.

    Args:
        model: with gates attached by a trace (`attach` with "auto" or a GateSpec).
        target: cost to reach, as a fraction of the ungated network's, in (0, 1).
        steps: optimizer steps of the whole run.
        cost: "macs", "parameters", or a table of this machine's layer times (`measure_latency`).
        warm_up: share of the steps without any pressure.
        ramp: share of the steps, after the warm-up, in which the target falls from 1 to `target`.
        strength: multiplier that an error of 1 builds up in the whole run; the larger, the faster and the rougher.
    Raises:
        NoGateError: the model has no attached gates.
        UnsupportedModelError: the gates were attached by patterns, so the cost is not known.
        OptionError: an option outside its range, or a target that the gates cannot reach; the message says why.
    """

    def __init__(
        self,
        model: nn.Module,
        target: float,
        steps: int,
        *,
        cost: str | Cost = "macs",
        warm_up: float = 0.1,
        ramp: float = 0.4,
        strength: float = 100.0,
    ) -> None:
        gates = gates_in(model)
        if gates is None:
            raise NoGateError(f"TargetCost: {type(model).__name__} has no attached gates; call attach first.")
        if isinstance(cost, str) and not gates.costs:
            raise UnsupportedModelError(
                "TargetCost: these gates were attached by layer patterns, so nothing is known of what they save; "
                "attach with a GateSpec and example inputs."
            )
        if isinstance(cost, str) and cost not in gates.costs:
            raise OptionError(
                f"TargetCost: cost is {cost!r}; expected {', '.join(map(repr, gates.costs))}, or a LatencyTable."
            )
        if not isinstance(cost, str) and cost.count != len(gates):
            raise OptionError(
                f"TargetCost: the cost is one of {cost.count} gate vectors, and {type(model).__name__} has "
                f"{len(gates)}; measure it for these gates."
            )
        if steps < 1 or warm_up < 0 or ramp < 0 or warm_up + ramp > 1 or strength <= 0:
            raise OptionError(
                "TargetCost: expected steps >= 1, warm_up and ramp >= 0 with a sum of at most 1, and strength > 0; "
                f"found {steps}, {warm_up}, {ramp} and {strength}."
            )
        self.gates = gates
        self.cost_name = cost if isinstance(cost, str) else "latency" if isinstance(cost, LatencyTable) else "cost"
        self.cost: Cost = gates.costs[cost] if isinstance(cost, str) else cost
        self.target, self.steps, self.strength = target, steps, strength
        self.warm_up, self.ramp = round(warm_up * steps), max(round(ramp * steps), 1)
        self.step = 0
        self.multiplier = 0.0
        self._check_reach()

    def __call__(self) -> Tensor:
        """The term of this step, a scalar; call it once a step, it moves the multiplier on."""
        expected = self.cost.fraction(self.gates.shares())
        if self.step >= self.warm_up:
            error = self.kept() - self.target_of(self.step)
            # restarted once the target is met: what has built up would go on closing gates
            self.multiplier = 0.0 if error <= 0 else self.multiplier + self.strength / self.steps * error
            proportional = self.strength / 10 * error
        else:
            proportional = 0.0
        self.step += 1
        return expected * (self.multiplier + proportional)

    def target_of(self, step: int) -> float:
        """The target of one step: 1 during the warm-up, then falling linearly."""
        progress = min(max((step - self.warm_up) / self.ramp, 0.0), 1.0)
        return 1 + progress * (self.target - 1)

    def kept(self) -> float:
        """Cost of what the evaluation rule keeps now, a fraction."""
        return float(self.cost.kept_fraction(self.gates.kept_shares()))

    @torch.no_grad()
    def expected(self) -> float:
        """Expected cost now, a fraction."""
        return float(self.cost.fraction(self.gates.shares()))

    @torch.no_grad()
    def settle(self) -> None:
        """Close or reopen the gates nearest to their threshold until the kept cost is the target, and freeze all.

        The last unit of a vector is never closed by this. Fine-tune afterwards: the weights have not seen the change.
        """
        settle_gates(self.gates, self.cost, self.target)
        for gate in self.gates:
            gate.freeze(gate.values())

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        return {"step": self.step, "multiplier": self.multiplier}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.step, self.multiplier = int(state["step"]), float(state["multiplier"])

    def _check_reach(self) -> None:
        if not 0 < self.target < 1:
            raise OptionError(f"TargetCost: target is {self.target}; expected a fraction strictly between 0 and 1.")
        spec = self.gates.spec
        if spec.rule != "top-k" and closing_threshold(spec.constants, spec.rule) <= -LOG_ALPHA_LIMIT:
            raise OptionError(
                f"TargetCost: no gate can close. With gamma={spec.constants.gamma} and zeta={spec.constants.zeta} a "
                f"gate closes at log_alpha <= {closing_threshold(spec.constants, spec.rule):.2f}, and log_alpha is "
                f"kept above -{LOG_ALPHA_LIMIT:.2f}; take gamma further below 0."
            )
        lowest, why = self._lowest()
        if self.target < lowest:
            raise OptionError(
                f"TargetCost: a target of {100 * self.target:.1f} % of the {self.cost_name} cannot be reached; {why}. "
                "Raise the target or gate more of the network."
            )

    def _lowest(self) -> tuple[float, str]:
        if self.gates.spec.rule == "top-k":  # the rule keeps as many as are expected to be open
            extreme = torch.full((len(self.gates),), -LOG_ALPHA_LIMIT)
            lowest = float(self.cost.fraction(self.gates.spec.constants.probability_open(extreme)))
            return lowest, f"with every log_alpha at its lower limit {100 * lowest:.1f} % are expected to stay"
        shares = torch.tensor([0.0 if gate.size == 1 else 1 / gate.size for gate in self.gates])
        lowest = float(self.cost.kept_fraction(shares))
        ungated = float(self.cost.fraction(torch.zeros(len(self.gates))))
        return lowest, (
            f"with one unit left at each place {100 * lowest:.1f} % stay, {100 * ungated:.1f} % in what no gate acts on"
        )


@torch.no_grad()
def settle_gates(gates: AttachedGates, cost: Cost, target: float) -> None:
    """Move the one threshold that all gates share until what is kept costs at most `target`.

    Gates are ranked by log_alpha; the largest number of them is kept whose cost does not exceed the target, and at
    least one of each vector. Gates that change sides are put just beyond their threshold.
    """
    spec = gates.spec
    if spec.rule == "top-k":
        raise UnsupportedModelError("settle: the top-k rule closes gates by rank, which moves no threshold.")
    threshold = closing_threshold(spec.constants, spec.rule)
    ranked = torch.cat([gate.log_alpha for gate in gates]).sort(descending=True).values
    low, high = 0, len(ranked)  # kept ranks: `low` fits, `high` is tried
    while low < high:
        middle = (low + high + 1) // 2
        if float(cost.kept_fraction(_shares_above(gates, float(ranked[middle - 1])))) <= target:
            low = middle
        else:
            high = middle - 1
    limit = float(ranked[low - 1]) if low else float("inf")
    kept = [_kept_above(gate.log_alpha, limit) for gate in gates]
    _fill_up(list(gates), kept, cost, target)
    for gate, keep in zip(gates, kept, strict=True):
        gate.log_alpha.copy_(
            torch.where(
                keep,
                gate.log_alpha.clamp(min=threshold + _SETTLED_MARGIN),
                gate.log_alpha.clamp(max=threshold - _SETTLED_MARGIN),
            )
        )


def _fill_up(gates: list[AttachedGate], kept: list[Tensor], cost: Cost, target: float) -> None:
    """Keep further gates, the next in rank first, as long as the cost stays below the target."""
    closed = [
        (float(gate.log_alpha[unit]), place, int(unit))
        for place, gate in enumerate(gates)
        for unit in torch.nonzero(~kept[place]).flatten()
    ]
    for _, place, unit in sorted(closed, reverse=True)[:_MOST_TRIED]:
        kept[place][unit] = True
        if float(cost.kept_fraction(torch.stack([keep.float().mean() for keep in kept]))) > target:
            kept[place][unit] = False


def _kept_above(log_alpha: Tensor, limit: float) -> Tensor:
    keep = log_alpha >= limit
    if len(keep) > 1 and not bool(keep.any()):
        keep[log_alpha.argmax()] = True
    return keep


def _shares_above(gates: AttachedGates, limit: float) -> Tensor:
    return torch.stack([_kept_above(gate.log_alpha, limit).float().mean() for gate in gates])
