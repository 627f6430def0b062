"""How sure is a speed-up: which interval holds the ratio of two models' times, and what verdict follows?

The measurements form a hierarchy: blocks inside rounds, where every round has fresh sessions. Memory layout differs
from session to session, so blocks of one round agree with each other more than with those of another; a bootstrap
that ignored this would give far too narrow an interval. So rounds are drawn first, then blocks inside each.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_DRAWS = 2000
# A percentile is printed only if this many samples lie beyond it: one slow call is an accident, not a percentile.
_SAMPLES_BEYOND = 5


@dataclass(frozen=True)
class Interval:
    """A ratio with its confidence interval."""

    estimate: float
    low: float
    high: float

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high


class Verdict(Enum):
    """What can be said; differences of up to the margin count as none."""

    FASTER = "FASTER"  # the whole interval lies above 1 + margin
    NOT_FASTER = "NOT FASTER"  # the whole interval lies below 1 / (1 + margin)
    INCONCLUSIVE = "INCONCLUSIVE"  # neither

    @property
    def exit_code(self) -> int:
        return {Verdict.FASTER: 0, Verdict.NOT_FASTER: 1, Verdict.INCONCLUSIVE: 2}[self]


def bootstrap_ratio(log_ratios: Array, *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """A ratio and its interval: the interquartile mean of its logarithms, by a hierarchical bootstrap.

    The interquartile mean forgets outliers as the median does, but uses half of the blocks where that uses one or two.

    Args:
        log_ratios: log(time of baseline / time of candidate) of each pair of blocks, shape [rounds, blocks].
        confidence: of the interval.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    rounds, blocks = log_ratios.shape
    drawn_rounds = generator.integers(0, rounds, (_DRAWS, rounds, 1))
    drawn_blocks = generator.integers(0, blocks, (_DRAWS, rounds, blocks))
    means = _interquartile_means(log_ratios[drawn_rounds, drawn_blocks].reshape(_DRAWS, -1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    (estimate,) = _interquartile_means(log_ratios.reshape(1, -1))
    return Interval(float(np.exp(estimate)), float(np.exp(low)), float(np.exp(high)))


def _interquartile_means(values: Array) -> Array:
    """Mean of each row without its lowest and its highest quarter."""
    ordered = np.sort(values, axis=1)
    cut = ordered.shape[1] // 4
    return np.asarray(ordered[:, cut : ordered.shape[1] - cut].mean(axis=1))


def judge(speed_up: Interval, control: Interval, margin: float) -> Verdict:
    """The verdict on a speed-up.

    Args:
        speed_up: time of the baseline over time of the candidate.
        control: the same for the baseline against itself, measured in the same blocks. What it strays from 1 is the
            machine's doing, so the speed-up must clear the margin by that much more.
        margin: differences of up to this count as none, such as 0.02.
    """
    stray = max(control.low, 1 / control.high, 1.0)
    if speed_up.low > (1 + margin) * stray:
        return Verdict.FASTER
    if speed_up.high < 1 / ((1 + margin) * stray):
        return Verdict.NOT_FASTER
    return Verdict.INCONCLUSIVE


def percentile(samples_ms: Array, rank: float) -> float | None:
    """A percentile of latencies, or None where too few samples lie beyond it to know it."""
    if samples_ms.size * (100 - rank) < 100 * _SAMPLES_BEYOND:
        return None
    return float(np.percentile(samples_ms, rank))
