"""How do the tools' results compare? Runs every ONNX file that a tool wrote beside the gated one in onnxruntime.

python -m benchmarks.peers.compare work/ --result benchmarks/peers/result.json --table benchmarks/peers/RESULTS.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.zoo.judge import _difference, _index_operators, _run, _session, paired_latency
from l0runtime.measurement.cost import count_cost

_TOOLS = ("l0runtime", "torch-pruning", "openvino", "onnxsim")


def measure(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    """Difference, parameters and paired latency of the ONNX file of one row."""
    source, target = folder / f"{row['case']}.onnx", folder / f"{row['case']}.{row['tool']}.onnx"
    if "failed" in row or "latency_in" in row:
        return row
    before = _session(str(source))
    row = row | {"parameters_before": count_cost(source, batch=1).parameters}
    try:
        after = _session(str(target))
        torch.manual_seed(5)
        images = (torch.randn(2, 3, 224, 224),)
        row |= {"difference": _difference(_run(before, images), _run(after, images))}
    except Exception as error:
        return row | {"failed": f"onnxruntime refuses the result: {type(error).__name__}: {error}"[:300]}
    latency = paired_latency(before, after, (torch.randn(1, 3, 224, 224),))
    return row | {
        "parameters_after": count_cost(target, batch=1).parameters,
        "index_operators_added": _index_operators(str(target)) - _index_operators(str(source)),
        "speedup": latency["speedup"],
        "speedup_quartiles": latency["speedup_quartiles"],
        "latency_ms_after": latency["latency_ms_compact"],
        "latency_in": "onnxruntime",
    }


def table(rows: list[dict[str, Any]]) -> str:
    """One line per case, one column per tool."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    found = {(row["case"], row["tool"]): row for row in rows}
    lines = ["| case | " + " | ".join(_TOOLS) + " |", "|---|" + "---|" * len(_TOOLS)]
    for case in cases:
        cells = [_cell(found.get((case, tool))) for tool in _TOOLS]
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if "failed" in row:
        return f"fails: {row['failed'][:80]}"
    share = row["parameters_after"] / row["parameters_before"]
    verdict = "exact" if row["difference"] <= 1e-5 else f"**wrong: {row['difference']:.2g}**"
    return f"{verdict}, {100 * share:.0f} % of parameters, {row['seconds']:.1f} s, {row['speedup']:.2f}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    rows = []
    for tool in _TOOLS:
        results = options.folder / f"{tool}.jsonl"
        if results.exists():
            rows += [measure(options.folder, json.loads(line)) for line in results.read_text().splitlines()]
    rows.sort(key=lambda row: row["case"])
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": 1,
        "batch": 1,
        "onnxruntime": version("onnxruntime-gpu"),
        "torch": version("torch"),
    }
    temporary = options.result.with_suffix(".part")
    temporary.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    temporary.rename(options.result)
    page = table(rows)
    if options.table:
        options.table.write_text("# Side by side: results\n\n" + page + "\n")
    print(page)


if __name__ == "__main__":
    main()
