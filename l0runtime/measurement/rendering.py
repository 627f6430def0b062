"""How does a comparison look on a terminal?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from l0runtime.measurement.profiling import NodeProfile
from l0runtime.measurement.report import BenchReport, Latency, ModelFacts
from l0runtime.measurement.statistics import Verdict

if TYPE_CHECKING:
    from rich.console import Console

_COLOURS = {Verdict.FASTER: "green", Verdict.NOT_FASTER: "red", Verdict.INCONCLUSIVE: "yellow"}
_NODES_SHOWN = 12


def print_report(report: BenchReport, console: Console) -> None:
    """The whole report: models, latencies, verdicts, what to know about the machine."""
    from rich.table import Table
    from rich.text import Text

    models = Table(box=None, pad_edge=False, title="models", title_justify="left")
    for column in ("", "file", "parameters", "MACs", "file MB", "cold start ms", "peak memory MB"):
        models.add_column(column, justify="left" if column in {"", "file"} else "right", overflow="fold")
    first = report.results[0]
    for role, facts, macs, least in (
        ("gated", report.baseline, first.baseline_macs, first.baseline_least_macs),
        ("compact", report.candidate, first.candidate_macs, first.candidate_least_macs),
    ):
        models.add_row(role, *_model_row(facts, macs, least))
    console.print(models)
    speeds = Table(box=None, pad_edge=False, title="latency in ms: p50/p90/p99", title_justify="left")
    columns = ("batch", "gated", "compact", "gated /s", "compact /s", "speed-up [95 % CI]", "A/A control", "verdict")
    for column in columns:
        speeds.add_column(column, justify="right", overflow="fold")
    for result in report.results:
        speed, control = result.speed_up, result.control
        speeds.add_row(
            str(result.batch),
            _percentiles(result.baseline),
            _percentiles(result.candidate),
            f"{result.throughput(result.baseline):.0f}",
            f"{result.throughput(result.candidate):.0f}",
            f"{speed.estimate:.3f} [{speed.low:.3f}, {speed.high:.3f}]",
            f"{control.estimate:.3f} [{control.low:.3f}, {control.high:.3f}]",
            Text(result.verdict.value, style=_COLOURS[result.verdict]),
        )
    console.print(speeds)
    load = "" if report.load_average is None else f", load average {report.load_average:.1f}"
    console.print(
        Text(
            f"{report.device}, {report.threads} threads, margin {report.margin:.1%}, "
            f"{report.machine['processor']}, {report.machine['usable_cores']} cores{load}"
        )
    )
    for result in report.results:
        if result.noise is not None:
            console.print(Text(result.noise, style="yellow"))
        if result.uncounted:
            console.print(Text(f"batch {result.batch}: MACs not counted for {', '.join(result.uncounted)}"))
    if report.profile is not None:
        for name, nodes in (("gated", report.profile.baseline), ("compact", report.profile.candidate)):
            console.print(_profile_table(name, nodes))
        for sentence in report.profile.sentences:
            console.print(Text(sentence))


def _model_row(facts: ModelFacts, macs: int, least: int | None) -> list[str]:
    footprint = facts.footprint
    memory = None if footprint is None else footprint.peak_memory_bytes
    return [
        Path(facts.path).name,
        f"{facts.parameters:,}",
        f"{macs:,}" if least is None else f"{least:,} to {macs:,}",
        f"{facts.file_bytes / 1e6:.2f}",
        "" if footprint is None else f"{footprint.cold_start_ms:.1f}",
        "" if memory is None else f"{memory / 1e6:.1f}",
    ]


def _percentiles(latency: Latency) -> str:
    return "/".join("-" if x is None else f"{x:.3g}" for x in (latency.p50_ms, latency.p90_ms, latency.p99_ms))


def _profile_table(name: str, nodes: tuple[NodeProfile, ...]) -> Any:
    from rich.table import Table

    total = sum(node.time_us for node in nodes) or 1.0
    table = Table(box=None, pad_edge=False, title=f"{name}: {total:.0f} us in {len(nodes)} nodes", title_justify="left")
    for column in ("layer or node", "operator", "us", "share", "MFLOP", "KB", "of roofline"):
        table.add_column(
            column, justify="left" if column in {"layer or node", "operator"} else "right", overflow="fold"
        )
    for node in sorted(nodes, key=lambda node: -node.time_us)[:_NODES_SHOWN]:
        table.add_row(
            node.label,
            node.op_type,
            f"{node.time_us:.0f}",
            f"{node.time_us / total:.0%}",
            f"{2 * node.macs / 1e6:.2f}",
            f"{node.bytes / 1e3:.1f}",
            f"{node.roofline_share:.0%}",
        )
    return table
