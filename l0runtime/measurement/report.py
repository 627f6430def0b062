"""What came out of a comparison: the figures, their conditions and the raw samples, as plain data."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict, dataclass
from typing import Any

from l0runtime.measurement.agreement import Agreement
from l0runtime.measurement.footprint import Footprint
from l0runtime.measurement.paired import BASELINE, CANDIDATE, Samples
from l0runtime.measurement.profiling import ProfileComparison
from l0runtime.measurement.statistics import Interval, Verdict, percentile

# Waiting for a core for more than this share of the time, or a control less sure than this, is worth a word.
_NOISY_WAIT = 0.1
_NOISY_CONTROL = 0.03


@dataclass(frozen=True)
class ModelFacts:
    """A model apart from its speed."""

    path: str
    file_bytes: int  # with external data beside it
    parameters: int
    weight_bytes: int
    footprint: Footprint | None


@dataclass(frozen=True)
class Latency:
    """Wall time of a call, in ms; a percentile is None where too few samples lie beyond it."""

    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    mean_ms: float
    samples: int

    @classmethod
    def of(cls, samples: Samples, role: str) -> Latency:
        kept = samples.kept_ms(role)
        return cls(
            float(percentile(kept, 50) or kept.mean()),
            percentile(kept, 90),
            percentile(kept, 99),
            float(kept.mean()),
            int(kept.size),
        )


@dataclass(frozen=True)
class BatchResult:
    """One batch size."""

    batch: int
    shapes: dict[str, tuple[int, ...]]
    agreement: Agreement
    baseline: Latency
    candidate: Latency
    baseline_macs: int
    candidate_macs: int
    uncounted: tuple[str, ...]  # contractions of either model that could not be counted
    speed_up: Interval  # time of the baseline over time of the candidate
    control: Interval  # of the baseline over itself
    verdict: Verdict
    samples: Samples
    candidate_least_macs: int | None = None  # of a conditional candidate when no block runs; else None
    baseline_least_macs: int | None = None

    def throughput(self, latency: Latency) -> float:
        """Items per second, one call after another."""
        return self.batch / latency.mean_ms * 1e3

    @property
    def noise(self) -> str | None:
        """What a reader must know about the machine's mood; None if it was quiet."""
        waiting = self.samples.waiting_share()
        width = math.log(self.control.high / self.control.low)
        if waiting is not None and waiting > _NOISY_WAIT:
            return (
                f"batch {self.batch}: noisy machine: calls waited for a core {waiting:.0%} of the time. "
                "Latencies include the wait, the speed-up does not."
            )
        if width > _NOISY_CONTROL:
            return (
                f"batch {self.batch}: noisy machine: the baseline against itself is only known to lie within "
                f"[{self.control.low:.3f}, {self.control.high:.3f}]."
            )
        return None

    @property
    def reason(self) -> str:
        """The verdict in a sentence."""
        interval = f"[{self.speed_up.low:.3f}, {self.speed_up.high:.3f}]"
        if self.verdict is Verdict.FASTER:
            return f"batch {self.batch}: FASTER, {self.speed_up.estimate:.3f} times, 95 % interval {interval}."
        if self.verdict is Verdict.NOT_FASTER:
            return f"batch {self.batch}: NOT FASTER, {self.speed_up.estimate:.3f} times, 95 % interval {interval}."
        return (
            f"batch {self.batch}: INCONCLUSIVE, the 95 % interval {interval} shows no difference beyond the margin "
            "and the control."
        )


@dataclass(frozen=True)
class BenchReport:
    """A comparison of two models.

    Attributes:
        baseline, candidate: what was compared; the candidate is the model that may be faster.
        device, threads, margin, seed: conditions, the same for both.
        machine: see `l0runtime.machine.describe_machine`.
        load_average: processes that wanted a core before the measurement; None where unknown.
        results: one for each batch size.
        profile: node by node, if asked for.
    """

    baseline: ModelFacts
    candidate: ModelFacts
    device: str
    threads: int
    margin: float
    seed: int
    machine: dict[str, object]
    load_average: float | None
    results: tuple[BatchResult, ...]
    profile: ProfileComparison | None = None

    def __str__(self) -> str:
        """The tables of `l0runtime bench` and the reason for each verdict, as plain text."""
        import io

        from rich.console import Console

        from l0runtime.measurement.rendering import print_report

        # rich's default file is stdout; a fixed width keeps the text the same wherever it is printed
        console = Console(file=io.StringIO(), width=120)
        print_report(self, console)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue() + "\n".join(result.reason for result in self.results)

    @property
    def verdict(self) -> Verdict:
        """FASTER only if it is at every batch size; NOT FASTER if it is not at any one."""
        verdicts = {result.verdict for result in self.results}
        if Verdict.NOT_FASTER in verdicts:
            return Verdict.NOT_FASTER
        return Verdict.FASTER if verdicts == {Verdict.FASTER} else Verdict.INCONCLUSIVE

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, raw samples and run order included."""
        return {
            "verdict": self.verdict.value,
            "baseline": asdict(self.baseline),
            "candidate": asdict(self.candidate),
            "device": self.device,
            "threads": self.threads,
            "margin": self.margin,
            "seed": self.seed,
            "machine": self.machine,
            "load_average": self.load_average,
            "results": [_result_dict(result) for result in self.results],
            "profile": None if self.profile is None else self.profile.to_dict(),
        }

    def to_csv(self) -> str:
        """One row for each batch size and model."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        columns = "batch model p50_ms p90_ms p99_ms items_per_second macs parameters"
        writer.writerow(f"{columns} speed_up speed_up_low speed_up_high verdict".split())
        for result in self.results:
            for facts, latency, macs in (
                (self.baseline, result.baseline, result.baseline_macs),
                (self.candidate, result.candidate, result.candidate_macs),
            ):
                figures = [latency.p50_ms, latency.p90_ms, latency.p99_ms, result.throughput(latency)]
                row: list[object] = [result.batch, facts.path]
                row += ["" if figure is None else f"{figure:.6g}" for figure in figures]
                row += [macs, facts.parameters]
                row += [f"{x:.6g}" for x in (result.speed_up.estimate, result.speed_up.low, result.speed_up.high)]
                writer.writerow([*row, result.verdict.value])
        return out.getvalue()


def _result_dict(result: BatchResult) -> dict[str, Any]:
    samples = result.samples
    return {
        "batch": result.batch,
        "shapes": {name: list(shape) for name, shape in result.shapes.items()},
        "verdict": result.verdict.value,
        "reason": result.reason,
        "noise": result.noise,
        "agreement": asdict(result.agreement),
        "speed_up": asdict(result.speed_up),
        "control": asdict(result.control),
        BASELINE: asdict(result.baseline) | {"macs": result.baseline_macs},
        CANDIDATE: asdict(result.candidate) | {"macs": result.candidate_macs},
        "uncounted": list(result.uncounted),
        "measurement": {
            "plan": asdict(samples.plan),
            "clock": samples.clock,
            "waiting_share": samples.waiting_share(),
            "seconds": samples.seconds,
            "creation_order": [list(order) for order in samples.creation_order],
            "block_order": [[list(block) for block in blocks] for blocks in samples.block_order],
            "latency_ms": {role: array.round(6).tolist() for role, array in samples.latency_ms.items()},
            "thread_ms": {role: array.round(6).tolist() for role, array in samples.thread_ms.items()},
        },
    }
