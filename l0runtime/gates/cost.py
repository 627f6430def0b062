"""What does a gated network cost, as a differentiable function of what its gates keep?

A layer's cost is proportional to the product of the widths on both of its sides, and a skipped branch costs nothing. So
the whole is a sum of terms, each a number times the shares that some gates keep:

    cost(s) = sum_t base_t prod_{g in t} s_g,      s_g = kept units of gate vector g / its units

With s_g = mean P(z != 0) this is the expected cost (of independent gates, layer by layer); with s_g = the share of
gates that the evaluation rule leaves open it is the compact model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Cost(Protocol):
    """Anything that tells what a network costs: a CostModel, or a LatencyTable.

    Attributes:
        count: number of gate vectors.
    """

    count: int

    def fraction(self, shares: Tensor) -> Tensor:
        """Cost as a fraction of the ungated network's, a scalar; shares: kept share per gate vector, [count]."""
        ...

    def kept_fraction(self, shares: Tensor) -> Tensor:
        """The same for what is kept in the end, which may come in steps and needs no derivative."""
        ...


@dataclass(frozen=True)
class Term:
    """One summand: `base` times the share of every gate vector in `gates` (one that occurs twice counts squared)."""

    base: float
    gates: tuple[int, ...]


class CostModel:
    """A sum of terms.

    Args:
        terms: the summands; those over the same gates are added up.
        count: number of gate vectors.
    """

    def __init__(self, terms: Sequence[Term], count: int) -> None:
        merged: dict[tuple[int, ...], float] = {}
        for term in terms:
            gates = tuple(sorted(term.gates))
            merged[gates] = merged.get(gates, 0.0) + term.base
        self.terms = tuple(Term(base, gates) for gates, base in merged.items())
        self.count = count
        self.total = sum(term.base for term in self.terms)
        powers = torch.zeros(len(self.terms), max(count, 1))
        for row, term in enumerate(self.terms):
            for gate in term.gates:
                powers[row, gate] += 1
        self._powers = powers
        self._base = torch.tensor([term.base / self.total for term in self.terms] if self.total else [])

    def fraction(self, shares: Tensor) -> Tensor:
        """Cost as a fraction of the ungated network's, a scalar; shares: kept share per gate vector, [count]."""
        powers, base = self._powers.to(shares.device), self._base.to(shares.device)
        return (torch.pow(shares, powers).prod(1) * base).sum()

    def kept_fraction(self, shares: Tensor) -> Tensor:
        """The same: every unit counts alike."""
        return self.fraction(shares)

    def select(self, chosen: Sequence[int]) -> CostModel:
        """The same cost where only the gate vectors `chosen` exist, renumbered in their order."""
        new = {old: position for position, old in enumerate(chosen)}
        terms = [Term(t.base, tuple(new[g] for g in t.gates if g in new)) for t in self.terms]
        return CostModel(terms, len(chosen))
