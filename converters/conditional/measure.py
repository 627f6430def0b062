"""Does skipping a block pay on this machine, and from which share of skipped samples on?

Each block is timed by itself, in the whole model: masked, conditional and skipped for every sample, conditional and run
for every sample. The branch pays as soon as the share r of samples that run is below the break-even,

    t_skip + r (t_run - t_skip) = t_masked
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from converters.conditional.describe import describe
from converters.conditional.outline import name_of, outline
from converters.conditional.regions import find_regions
from converters.output_files import save_model
from l0runtime.conditional.forcing import force_gates, forced_inputs
from l0runtime.sample_inputs import sample_inputs
from l0runtime.session import Session, load

_ROUNDS, _WARM = 15, 3
_LEAST_GAIN = 0.02  # of the model's time: less is within what two timings of one model differ by


@dataclass(frozen=True)
class Pay:
    """Times of one block, in milliseconds of the whole model at a batch of one.

    Args:
        name: the block.
        masked: with the block computed and multiplied.
        skipped, run: with a branch, for a sample that skips and for one that runs.
    """

    name: str
    masked: float
    skipped: float
    run: float

    @property
    def is_worth_it(self) -> bool:
        """Whether skipping saves more than the branch costs, if half of the samples skip."""
        return (self.skipped + self.run) / 2 < self.masked * (1 - _LEAST_GAIN / 2)

    @property
    def break_even(self) -> float:
        """Largest share of samples that may run for the branch to pay, 0 to 1."""
        if self.run <= self.skipped:
            return 1.0 if self.skipped < self.masked else 0.0
        return min(1.0, max(0.0, (self.masked - self.skipped) / (self.run - self.skipped)))

    def note(self) -> str:
        """One line for the report."""
        times = f"{self.masked:.3f} ms masked, {self.skipped:.3f} ms skipped, {self.run:.3f} ms run"
        if self.is_worth_it:
            return f"{self.name}: pays where at most {self.break_even:.0%} of the samples run it ({times})"
        return f"{self.name}: left unconditional, a branch does not pay for half of the samples skipped ({times})"


def measure_blocks(
    masked: Path, folder: Path, shapes: Mapping[str, tuple[int, ...]], *, device: str = "cpu", threads: int = 1
) -> tuple[Pay, ...]:
    """Time every outermost block of a masked file.

    Args:
        masked: the file.
        folder: for intermediate files.
        shapes: input shapes of one example.
        device, threads: as for `l0runtime.load`; on a GPU a decision is read on the host, which is a part of the time.
    """
    feed: dict[str, Any] = dict(sample_inputs(onnx.load(str(masked)), shapes=shapes))
    names = list(dict.fromkeys(name_of(region) for region in find_regions(ir.load(str(masked)).graph)))
    pays = []
    for number, name in enumerate(names):
        model = ir.load(str(masked))
        outlined = outline(model, keep_masked=[other for other in names if other != name])
        path = save_model(model, folder / f"block{number}.onnx")
        blocks = describe(masked, outlined, shapes)
        forced = {"masked": masked, "conditional": path}
        sessions = {
            which: load(
                force_gates(onnx.load(str(file)), blocks).SerializeToString(),
                device=device,
                threads=threads,
                allow_cpu_nodes=device != "cpu",
            )
            for which, file in forced.items()
        }
        rows = next(iter(feed.values())).shape[0]
        closed = {name: np.zeros(rows, np.float32) for name in forced_inputs(blocks).values()}
        opened = {name: np.ones(rows, np.float32) for name in closed}
        if any(not block.runs_if_true for block in blocks.blocks):
            closed, opened = opened, closed
        cases = {
            "masked": (sessions["masked"], feed | opened),
            "skipped": (sessions["conditional"], feed | closed),
            "run": (sessions["conditional"], feed | opened),
        }
        # one thread's own time does not count the wait for a core, which other programs cause
        clock = time.thread_time if (device, threads) == ("cpu", 1) else time.perf_counter
        pays.append(Pay(name, **_time_interleaved(cases, clock)))
    return tuple(pays)


def _time_interleaved(
    cases: Mapping[str, tuple[Session, Mapping[str, Any]]], clock: Callable[[], float]
) -> dict[str, float]:
    """Median milliseconds of each case, in rounds of random order."""
    generator = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(_WARM + _ROUNDS):
        for name in generator.sample(list(cases), len(cases)):
            session, feed = cases[name]
            begin = clock()
            session.run(feed)
            if number >= _WARM:
                times[name].append(1e3 * (clock() - begin))
    return {name: statistics.median(values) for name, values in times.items()}
