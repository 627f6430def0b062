"""How many times as fast is one model file as another, on given inputs? The timing part of `bench`, by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l0runtime.measurement.paired import BASELINE, CANDIDATE, CONTROL, Runner, Samples, clock_for, measure
from l0runtime.measurement.statistics import Interval, Verdict, bootstrap_ratio, judge
from l0runtime.session import load
from l0runtime.session.devices import parse_device

# a model of a few milliseconds is compared in less than 2 s, everything included (benchmarks/bench_bars)
DEFAULT_SECONDS = 1.7


@dataclass(frozen=True)
class Speed:
    """Two models timed in pairs.

    Attributes:
        speed_up: time of the baseline over time of the candidate.
        control: the same for the baseline against itself.
        verdict: on the candidate.
        samples: everything that was measured.
    """

    speed_up: Interval
    control: Interval
    verdict: Verdict
    samples: Samples


def compare_speed(
    candidate: str | Path | bytes,
    baseline: str | Path | bytes,
    feed: Mapping[str, Any],
    *,
    device: str,
    threads: int = 1,
    margin: float = 0.0,
    budget_seconds: float = DEFAULT_SECONDS,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Speed:
    """Time two models on the same inputs, bound beforehand; what they compute is not compared here.

    Args:
        candidate, baseline: model files; the candidate is the one that may be faster.
        feed: inputs of both.
        device, threads: as in `l0runtime.load`.
        margin: differences of up to this count as none.
        budget_seconds: about how long to time.
        seed: of the run order.
        options: further options of `l0runtime.load`, the same for both.
    Raises: as `l0runtime.load`.
    """

    def maker(model: str | Path | bytes) -> Callable[[], Runner]:
        return lambda: load(model, device=device, threads=threads, **(options or {})).bind(feed)

    samples = measure(
        {BASELINE: maker(baseline), CANDIDATE: maker(candidate), CONTROL: maker(baseline)},
        budget_seconds=budget_seconds,
        clock=clock_for(parse_device(device).kind, threads),
        seed=seed,
    )
    speed_up = bootstrap_ratio(samples.log_speed_ups(), seed=seed)
    control = bootstrap_ratio(samples.log_control_ratios(), seed=seed)
    return Speed(speed_up, control, judge(speed_up, control, margin), samples)
