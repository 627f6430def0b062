"""What does the zoo show? Renders result rows as a markdown table with the bars of the specification.

python -m benchmarks.zoo.table benchmarks/zoo/results.jsonl > benchmarks/zoo/RESULTS.md
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_JUDGED = ("exact", "WRONG", "ill-conditioned")


def load(paths: Iterable[Path]) -> list[Row]:
    """All rows; the last one of each (model, scenario) counts."""
    rows: dict[tuple[str, str], Row] = {}
    for path in paths:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            rows[row["model"], row["scenario"]] = row
    return list(rows.values())


def reached(row: Row, what: str) -> float | None:
    """Share of the ideal reduction of `parameters` or `macs` that was reached; None if there is none."""
    possible = row[f"{what}_before"] - row[f"{what}_ideal"]
    if possible <= 0:
        return None
    return float((row[f"{what}_before"] - row[f"{what}_after"]) / possible)


def render(rows: list[Row]) -> str:
    """The whole page."""
    judged = [r for r in rows if r["status"] in _JUDGED]
    lines = ["# Zoo: results", "", *summary(rows, judged), "", "## What falls short", "", *shortfalls(rows, judged), ""]
    lines += ["## Every model and scenario", "", *table(judged), ""]
    lines += ["## Not judged", "", *not_judged(rows), "", "## Not as published", "", *notes(rows)]
    return "\n".join(lines) + "\n"


def summary(rows: list[Row], judged: list[Row]) -> list[str]:
    """One line per bar."""
    # a compaction that failed is no wrong answer, but it is no exact one either
    failed = [r for r in rows if r["status"] == "compaction failed"]
    models: dict[str, list[Row]] = defaultdict(list)
    for row in [*judged, *failed]:
        models[row["model"]].append(row)
    tried = Counter(_source(model) for model in {row["model"] for row in rows})
    exact = Counter(_source(m) for m, found in models.items() if all(r["status"] == "exact" for r in found))
    smaller = Counter(_source(m) for m, found in models.items() if any(r in judged and _is_smaller(r) for r in found))
    sized = [r for r in judged if "macs_after" in r]
    reducible = [r for r in sized if reached(r, "macs") is not None]
    wide = [r for r in judged if isinstance(r.get("difference_float64"), float)]
    compacted = [r for r in judged if "compaction_seconds" in r]
    large = [r for r in compacted if r["weight_bytes"] > 20e6]
    resnet = sorted((r for r in sized if r["model"] == "torchvision/resnet18"), key=lambda r: r["scenario"])
    shares = [f"{r['scenario']} {100 * (reached(r, 'parameters') or 0):.2f} %" for r in resnet]
    operators = Counter(o for r in judged for o in set(r.get("without_rule", [])))
    bars = [
        (f"{source}: models tried, all scenarios exact, really smaller", f"{n}, {exact[source]}, {smaller[source]}")
        for source, n in sorted(tried.items())
    ]
    bars += [
        (
            "rows exact in float32 (1e-5 of the output's scale)",
            _share([*judged, *failed], lambda r: r["status"] == "exact"),
        ),
        (
            "of the others: equal in float64 (1e-10), in float32 no further off than rounding takes the gated model",
            _share([r for r in judged if r["status"] != "exact"], lambda r: r["status"] == "ill-conditioned"),
        ),
        ("rows exact in float64 (1e-10), of those evaluated", _share(wide, lambda r: r["difference_float64"] <= 1e-10)),
        ("rows that reach 95 % of the ideal FLOP reduction", _share(reducible, lambda r: reached(r, "macs") >= 0.95)),
        ("rows no slower than gated (upper quartile of the paired ratio >= 1)", _share(sized, _is_no_slower)),
        (
            "of the slower ones, no slower with `convert --align auto`",
            _share([r for r in sized if not _is_no_slower(r)], _is_no_slower_aligned),
        ),
        (
            "rows without an added Gather or Scatter at run time, or faster with those that were chosen",
            _share(sized, _is_free_of_idle_gathers),
        ),
        ("rows where compaction takes at most a quarter of the export", _share(compacted, _is_quick)),
        (
            "rows whose peak memory beyond the loaded model is under twice the weights (models above 20 MB)",
            _share(large, lambda r: r["peak_over_weights"] < 2),
        ),
        ("ResNet-18, share of the ideal parameter reduction", ", ".join(shares) or "no row"),
        ("operators without a rule (rows)", ", ".join(f"{o} ({n})" for o, n in operators.most_common()) or "none"),
    ]
    return ["| bar | result |", "|---|---|", *(f"| {bar} | {result} |" for bar, result in bars)]


def _source(model: str) -> str:
    return model.partition("/")[0]


def _is_smaller(row: Row) -> bool:
    return "parameters_after" in row and bool(row["parameters_after"] < row["parameters_before"])


def _is_no_slower(row: Row) -> bool:
    return bool(row["speedup_quartiles"][1] >= 1)


def _is_no_slower_aligned(row: Row) -> bool:
    return "align_speedup" in row and bool(row["align_speedup_quartiles"][1] >= 1)


def _is_free_of_idle_gathers(row: Row) -> bool:
    if row["index_operators_added"] <= 0:
        return True
    chosen = row["index_operators_added"] - row.get("index_operators_without_choice", 0)
    forced = row.get("index_operators_without_choice", 0) > 0
    return bool(chosen > 0 and not forced and row["gain_from_gathers_quartiles"][1] >= 1)


def _is_quick(row: Row) -> bool:
    return bool(row["compaction_seconds"] <= 0.25 * (row["export_seconds"] + row["optimise_seconds"]))


def shortfalls(rows: list[Row], judged: list[Row]) -> list[str]:
    lines = []
    for row in judged:
        reasons = []
        if row["status"] == "WRONG":
            reasons.append(f"difference {_number(row['difference_float32'])} {row.get('reason', '')}")
        if row["status"] == "ill-conditioned":
            reasons.append(
                f"float32 {_number(row['difference_float32'])}, float64 {_number(row['difference_float64'])}; "
                f"from the float64 result compact is {_number(row['error_of_compact'])} away, gated "
                f"{_number(row['error_of_gated'])}, or {_number(row['difference_of_gated_itself'])} by rounding alone"
            )
        if "macs_after" in row:
            share = reached(row, "macs")
            if share is not None and share < 0.95:
                kept = row.get("kept") or []
                why = f"; kept: {kept[0]['reason']} ({kept[0]['node']})" if kept else ""
                reasons.append(f"{100 * share:.0f} % of the ideal FLOP reduction{why}")
            if not _is_free_of_idle_gathers(row):
                gain = f"; {row['gain_from_gathers']}x from those chosen" if "gain_from_gathers" in row else ""
                reasons.append(
                    f"{row['index_operators_added']} index operators added (speed-up {row['speedup']}{gain})"
                )
            if not _is_no_slower(row):
                aligned = f"; {row['align_speedup']}x with align auto" if "align_speedup" in row else ""
                reasons.append(f"slower: {row['speedup']}x{aligned}")
        lines += [f"- {row['model']} {row['scenario']}: {'; '.join(reasons)}"] if reasons else []
    for row in rows:
        if row["status"] in ("compaction failed", "harness failed", "export differs", "not gated"):
            lines.append(f"- {row['model']} {row['scenario']}: {row['status']}: {row.get('reason', '')}")
    return lines or ["nothing"]


def table(judged: list[Row]) -> list[str]:
    lines = [
        "| model | scenario | float32 | float64 | parameters before -> after (ideal) | MMACs before -> after (ideal) "
        "| MAC reduction of ideal | speed-up | compaction / export, s | peak / weights | +Gather/Scatter | no rule |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in judged:
        if "macs_after" not in r:
            lines.append(
                f"| {r['model']} | {r['scenario']} | **{_number(r['difference_float32'])}** {r.get('reason', '')} |"
                + " |" * 9
            )
            continue
        share = reached(r, "macs")
        lines.append(
            f"| {r['model']} | {r['scenario']} | {_number(r['difference_float32'])} "
            f"| {_number(r.get('difference_float64'))} "
            f"| {_count(r['parameters_before'])} -> {_count(r['parameters_after'])} ({_count(r['parameters_ideal'])}) "
            f"| {_millions(r['macs_before'])} -> {_millions(r['macs_after'])} ({_millions(r['macs_ideal'])}) "
            f"| {'' if share is None else f'{100 * share:.1f} %'} | {r['speedup']}x "
            f"| {r['compaction_seconds']} / {r['export_seconds'] + r['optimise_seconds']:.1f} "
            f"| {r['peak_over_weights']} | {r['index_operators_added']} | {', '.join(r['without_rule'])} |"
        )
    return lines


def not_judged(rows: list[Row]) -> list[str]:
    groups: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row["status"] not in _JUDGED:
            where = row["model"] if row["scenario"] == "*" else f"{row['model']} {row['scenario']}"
            groups[f"{row['status']}: {row.get('reason', '')}"].append(where)
    return [f"- {reason}: {', '.join(sorted(names))}" for reason, names in sorted(groups.items())] or ["nothing"]


def notes(rows: list[Row]) -> list[str]:
    """Models by what was changed in them: a small configuration, smaller images."""
    groups: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.get("note"):
            groups[row["note"]].add(row["model"])
    return [f"- {note}: {', '.join(sorted(models))}" for note, models in sorted(groups.items())] or ["nothing"]


def _share(rows: list[Row], passes: Callable[[Row], bool]) -> str:
    if not rows:
        return "no row"
    count = sum(passes(row) for row in rows)
    return f"{count} of {len(rows)} ({100 * count / len(rows):.1f} %)"


def _number(value: Any) -> str:
    if value is None:
        return ""
    value = float(value)
    return f"{value:.1e}" if math.isfinite(value) and value else ("0" if value == 0 else "inf")


def _count(value: int) -> str:
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.1f} k"


def _millions(value: int) -> str:
    return f"{value / 1e6:.1f}" if value >= 1e7 else f"{value / 1e6:.3f}"


if __name__ == "__main__":
    print(render(load(Path(argument) for argument in sys.argv[1:])), end="")
