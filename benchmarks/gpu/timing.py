"""How are several ways to run the same thing timed against each other in a fraction of a second?

Blocks of consecutive calls, in random order within every round, so that clock changes hit all alike; the ratio of two
ways is the median over the rounds of the ratio of their blocks, with a bootstrap interval over rounds. Wall time: a run
returns when its outputs are complete. One session for each way, so a ratio of a few per cent may be the session's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_ROUNDS = 12
_WARM_UP = 3
_DRAWS = 1000


@dataclass(frozen=True)
class Timed:
    """Times of several ways.

    Attributes:
        block_ms: way to milliseconds of one call, for each round.
    """

    block_ms: dict[str, np.ndarray[Any, Any]]

    def ms(self, way: str) -> float:
        """Median time of a call."""
        return float(np.median(self.block_ms[way]))

    def ratio(self, over: str, under: str) -> dict[str, float]:
        """Time of `over` in multiples of `under`, with a 95 % interval."""
        logs = np.log(self.block_ms[over]) - np.log(self.block_ms[under])
        drawn = np.random.default_rng(0).integers(0, logs.size, (_DRAWS, logs.size))
        low, high = np.quantile(np.median(logs[drawn], axis=1), [0.025, 0.975])
        return {"ratio": float(np.exp(np.median(logs))), "low": float(np.exp(low)), "high": float(np.exp(high))}


def time_ways(ways: Mapping[str, Callable[[], object]], *, seconds: float, seed: int = 0) -> Timed:
    """Time every way.

    Args:
        ways: name to a call that returns when its work is done.
        seconds: about how long to spend on each way.
        seed: of the order.
    """
    calls = {}
    for name, run in ways.items():
        for _ in range(_WARM_UP):
            run()
        started = time.perf_counter()
        run()
        calls[name] = max(1, int(seconds / _ROUNDS / max(time.perf_counter() - started, 1e-7)))
    order = np.random.default_rng(seed)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_ROUNDS):
        for index in order.permutation(len(ways)):
            name = list(ways)[index]
            run = ways[name]
            run()  # the way before left its data in the caches
            started = time.perf_counter()
            for _ in range(calls[name]):
                run()
            times[name].append((time.perf_counter() - started) * 1e3 / calls[name])
    return Timed({name: np.array(values) for name, values in times.items()})
