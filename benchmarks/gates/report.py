"""The result files of this folder as the tables of its README.

python -m benchmarks.gates.report
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def read(name: str) -> dict[str, Any]:
    """One result file."""
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return content


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def overhead() -> str:
    rows = [
        (r["model"], r["samples"], r["gates"], f"{r['ratio']:.3f} [{r['interval'][0]:.3f}, {r['interval'][1]:.3f}]")
        for r in read("overhead")["runs"]
    ]
    return table(["model", "samples", "gates", "step with gates / without"], rows)


def targets() -> str:
    rows = []
    for r in read("targets")["runs"]:
        off = f"{r['macs_percent'] - 100 * r['target']:+.2f}" if r["target"] else ""
        rows.append((r["name"], r["macs_percent"], off, r["error_percent"], r.get("parameters_percent", 100.0)))
    return table(["run", "compact MACs %", "points off target", "error %", "parameters %"], rows)


def recipe() -> str:
    rows = [
        (
            r["name"],
            r["lambda"],
            r["gate_learning_rate"] or "0.1, SGD, as the weights",
            f"{r['closed']} of {r['gates']}",
            r["lowest_log_alpha"],
            r["macs_percent"],
            r["error_percent"],
        )
        for r in read("wide_resnet_recipe")["runs"]
    ]
    return table(
        ["run", "lambda N", "rate of the gates", "closed gates", "lowest log_alpha", "compact MACs %", "error %"], rows
    )


def transformers() -> str:
    rows = []
    for r in read("transformers")["runs"]:
        speeds = [f"{s['ratio']} [{s['interval'][0]}, {s['interval'][1]}]" for s in r["speed_up"].values()]
        errors = f"{r['error_percent_without_gates']} / {r['error_percent_compact']}"
        rows.append((r["name"], r["macs_percent"], errors, f"{r['difference']:.1e}", *speeds))
    batches = list(read("transformers")["runs"][0]["speed_up"])
    head = ["model", "compact MACs %", "error % without gates / compact", "difference"]
    return table([*head, *(f"speed-up, batch {batch}" for batch in batches)], rows)


def latency() -> str:
    rows = []
    for r in read("latency")["runs"]:
        low, high = r["measured_interval"]
        measured = f"{r['measured_percent']} [{low}, {high}]"
        rows.append((r["name"], r["predicted_percent"], measured, r["macs_percent"], r["error_percent"]))
    return table(["run", "by the table %", "measured %", "MACs %", "error %"], rows)


def main() -> None:
    for part in (overhead, targets, recipe, transformers, latency):
        print(part(), end="\n\n")


if __name__ == "__main__":
    main()
