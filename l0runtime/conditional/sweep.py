"""What does a conditional model cost when its blocks run for this share of the samples, or for that?

The gates are driven from outside (forcing.py), so every rate can be had, and their own networks run all the same. The
masked model costs the same at every rate; both are timed in turns, in random order.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from l0runtime.conditional.forcing import force_gates, forced_inputs
from l0runtime.conditional.metadata import ConditionalModel, conditional_blocks
from l0runtime.conditional.unrolled import recount
from l0runtime.errors import InputError, OptionError, UnsupportedModelError
from l0runtime.onnx_files import read_model
from l0runtime.sample_inputs import sample_inputs
from l0runtime.session import load

_PATTERNS = 20  # choices for each rate: with a batch of one, a block runs in this many steps
_WARM = 3

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class RatePoint:
    """Cost at one rate and batch size.

    Args:
        batch: samples in a run.
        rate: share of the samples that each block ran for, 0 to 1.
        macs: multiply-accumulates for one sample, on average.
        conditional_ms, masked_ms: median time of a run; None without a masked model.
        line_ms: the straight line between what the model costs when no block runs, and the masked model (or, without
            one, itself when all blocks run).
    """

    batch: int
    rate: float
    macs: float
    conditional_ms: float
    masked_ms: float | None
    line_ms: float

    @property
    def over_line(self) -> float:
        """Time relative to the proportional line."""
        return self.conditional_ms / self.line_ms

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for json.dumps."""
        return asdict(self) | {"over_line": self.over_line}


def sweep_rates(
    conditional: str | Path,
    against: str | Path | None = None,
    *,
    rates: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    batches: Sequence[int] = (1,),
    device: str = "cpu",
    threads: int = 1,
    seconds: float = 3.0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> tuple[RatePoint, ...]:
    """Time a conditional model at several execution rates.

    Args:
        conditional: the file.
        against: the masked model that it was made from.
        rates: shares in [0, 1]; 0 and 1 are measured in any case.
        batches: batch sizes.
        device, threads: as for `l0runtime.load`.
        seconds: about how long to time each batch size.
        shapes, dims: sizes of inputs, as for `sample_inputs`; the batch takes the place of a whole shape's first size.
        seed: of inputs, choices and order.
        progress: called with one line per batch size.
    Raises:
        UnsupportedModelError: the model has no conditional blocks.
        OptionError: a rate outside [0, 1].
        InputError: a batch size that the model does not take.
    """
    if any(not 0 <= rate <= 1 for rate in rates):
        raise OptionError(f"rates {', '.join(map(str, rates))}: expected shares from 0 to 1.")
    proto = read_model(conditional)
    model = conditional_blocks(proto, str(conditional))
    if model is None:
        raise UnsupportedModelError(f"{conditional}: has no conditional blocks, so there is no rate to sweep.")
    forced = load(force_gates(proto, model).SerializeToString(), device=device, threads=threads, allow_cpu_nodes=True)
    masked = None if against is None else load(against, device=device, threads=threads)
    points: list[RatePoint] = []
    for batch in batches:
        if progress is not None:
            progress(f"batch {batch} ...")
        sized = {name: (batch, *shape[1:]) for name, shape in (shapes or {}).items()}
        feed = dict(sample_inputs(proto, batch=batch, shapes=sized, dims=dims, seed=seed))
        rows = len(next(iter(feed.values())))
        if rows != batch:
            raise InputError(
                f"{conditional}: batch {batch}: its inputs have the fixed first dimension {rows}. Export the model "
                "with a dynamic batch, or bench that size."
            )
        at_shapes = recount(proto, model, {name: array.shape for name, array in feed.items()})
        cases: dict[str, list[Callable[[], object]]] = {}
        if masked is not None:
            cases["masked"] = [partial(masked.run, feed)]
        every = sorted({0.0, 1.0, *rates})
        for rate in every:
            choices = [choose(model, rate, batch, number, seed) for number in range(_PATTERNS)]
            cases[str(rate)] = [partial(forced.run, feed | choice) for choice in choices]
        times = _time_in_turns(cases, seconds, seed)
        top = times["masked"] if masked is not None else times["1.0"]
        points += [
            RatePoint(
                batch=batch,
                rate=rate,
                macs=at_shapes.macs_spent([_reached(model, position, rate) for position in range(len(model.blocks))]),
                conditional_ms=times[str(rate)],
                masked_ms=times.get("masked"),
                line_ms=times["0.0"] + rate * (top - times["0.0"]),
            )
            for rate in every
        ]
    return tuple(points)


def choose(model: ConditionalModel, rate: float, batch: int, number: int, seed: int = 0) -> dict[str, Array]:
    """Values for all gates with which each block runs at a rate, by forced input; `number` counts the choices.

    Each choice runs floor or ceil of rate * batch samples, and all `_PATTERNS` choices together exactly their share.
    """
    generator = np.random.default_rng([seed, number])
    chosen: dict[str, Array] = {}
    for position, (gate, name) in enumerate(forced_inputs(model).items()):
        block = next(block for block in model.blocks if block.gate == gate)
        step = (number + 7 * position) % _PATTERNS  # not all blocks in the same choices
        share = rate * batch
        count = math.floor((step + 1) * share + 1e-9) - math.floor(step * share + 1e-9)
        runs = generator.permutation(batch) < count
        chosen[name] = np.where(runs == block.runs_if_true, 1, 0).astype(np.float32)
    return chosen


def _reached(model: ConditionalModel, position: int, rate: float) -> float:
    """Share of the samples that a block runs for: its own rate times that of the blocks around it."""
    parent = model.blocks[position].parent
    return rate if parent is None else rate * _reached(model, parent, rate)


def _time_in_turns(cases: Mapping[str, Sequence[Callable[[], object]]], seconds: float, seed: int) -> dict[str, float]:
    """Mean over the choices of a case of the median milliseconds of each."""
    order = random.Random(seed)
    times: dict[str, list[list[float]]] = {name: [[] for _ in runs] for name, runs in cases.items()}
    begin, rounds = time.perf_counter(), 0
    while rounds < _WARM + _PATTERNS or time.perf_counter() - begin < seconds:
        for name in order.sample(list(cases), len(cases)):
            runs = cases[name]
            number = rounds % len(runs)
            start = time.perf_counter()
            runs[number]()
            if rounds >= _WARM:
                times[name][number].append(1e3 * (time.perf_counter() - start))
        rounds += 1
    return {
        name: statistics.fmean(statistics.median(samples) for samples in of_case if samples)
        for name, of_case in times.items()
    }
