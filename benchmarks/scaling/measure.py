"""Does the cost of compaction grow linearly with the size of the graph?

    python -m benchmarks.scaling.measure --result benchmarks/scaling/result.json

Seconds are CPU seconds of one thread; what counts is seconds per node, relative to the smallest graph of the same kind
in the same run. Exit code 1 if any of them exceeds the limit.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path

import onnx_ir as ir

from benchmarks.scaling.graphs import GRAPHS
from converters.compaction import compact

SIZES = (2000, 4000, 8000, 16000)
# A quadratic step would come out near 8 at eight times the size; noise and caches cost some tenths.
LIMIT = 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, required=True, help="rows that it holds already stay, unless made anew")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--graphs", nargs="+", default=list(GRAPHS), choices=list(GRAPHS))
    options = parser.parse_args()
    found = json.loads(options.result.read_text())["graphs"] if options.result.exists() else {}
    compact(ir.from_proto(next(iter(GRAPHS.values()))(60)))  # imports and first calls
    for name in options.graphs:
        for size in options.sizes:
            rows = {row["size"]: row for row in found.get(name, [])} | {size: measure(name, size)}
            found[name] = [rows[key] for key in sorted(rows)]
    for rows in found.values():
        for row in rows:
            row["per_node_relative"] = round(row["ms_per_node"] / rows[0]["ms_per_node"], 2)
    linear = all(row["per_node_relative"] <= LIMIT for rows in found.values() for row in rows)
    text = json.dumps({"limit": LIMIT, "linear": linear, "graphs": found}, indent=2) + "\n"
    part = options.result.with_suffix(".part")
    part.write_text(text)
    part.rename(options.result)
    print(text)
    sys.exit(0 if linear else 1)


def measure(name: str, size: int) -> dict[str, float]:
    """CPU seconds of one compaction, the better of two for small graphs, and what it removed."""
    proto = GRAPHS[name](size)
    seconds = []
    removed = 0
    for _ in range(2 if size < 8000 else 1):
        model = ir.from_proto(proto)
        gc.collect()
        begin = time.process_time()
        removed = len(compact(model).plan.removed)
        seconds.append(time.process_time() - begin)
    nodes = len(proto.graph.node)
    return {
        "size": size,
        "nodes": nodes,
        "axes_cut": removed,
        "cpu_seconds": round(min(seconds), 2),
        "ms_per_node": round(1000 * min(seconds) / nodes, 3),
    }


if __name__ == "__main__":
    main()
