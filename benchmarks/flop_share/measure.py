"""How much of the arithmetic that a compact model saves turns into time, at batch 1, 8 and 32?

    python -m benchmarks.flop_share.measure --out benchmarks/flop_share/result.json

Share = (1 - time compact / time gated) / (1 - MACs compact / MACs gated): 1 if time falls as the arithmetic does, above
1 if by more. The networks and their gates are those of benchmarks/native_width; both times are from one run. A case
whose calls would take longer than `--limit` seconds together is left out and listed with the reason.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.native_width.measure import DEFAULT, check_same_function, feed_of, inverse
from benchmarks.native_width.prepare import prepare
from l0runtime.machine import describe_machine, load_average
from l0runtime.measurement import compare_speed, count_cost
from l0runtime.session import load

BATCHES = (1, 8, 32)
# calls of a comparison at the least: six rounds of three models, each warmed up twice and timed in blocks
LEAST_CALLS = 6 * 3 * (2 + 3 * 5)


def measure(name: str, batch: int, open_share: float, folder: Path, seconds: float, limit: float) -> dict[str, Any]:
    """One network at one batch size."""
    files = prepare(name, open_share, folder)
    feed = feed_of(name, files, batch)
    macs = {kind: count_cost(getattr(files, kind), batch=batch).macs for kind in ("gated", "compact")}
    row: dict[str, Any] = {"network": name, "batch": batch, "open_share": open_share, "macs": macs}
    gated = load(files.gated, device="cpu", threads=1).bind(feed)
    gated.run()
    started = time.thread_time()
    gated.run()
    expected = LEAST_CALLS * (time.thread_time() - started)
    if expected > limit:
        return row | {"left_out": f"{LEAST_CALLS} calls would take about {expected:.0f} s, more than {limit:.0f} s"}
    row["difference_to_gated"] = check_same_function(files, feed) if batch == 1 else None
    speed = compare_speed(files.compact, files.gated, feed, device="cpu", threads=1, budget_seconds=seconds)
    ratio = inverse(speed)
    saved = 1 - macs["compact"] / macs["gated"]
    return row | {
        "time_ratio": ratio,
        "share": (1 - ratio["ratio"]) / saved,
        "share_low": (1 - ratio["high"]) / saved,
        "share_high": (1 - ratio["low"]) / saved,
        "gated_ms": float(np.median(speed.samples.block_ms("baseline"))),
        "compact_ms": float(np.median(speed.samples.block_ms("candidate"))),
        "waiting_share": speed.samples.waiting_share(),
        "load_average": load_average(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", default=",".join(DEFAULT))
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--open", type=float, default=0.5, help="share of the channels that stay")
    parser.add_argument("--folder", type=Path, help="keep the ONNX files here (several GB)")
    parser.add_argument("--seconds", type=float, default=4.0, help="about how long to time each case")
    parser.add_argument("--limit", type=float, default=240.0, help="leave out what must take longer, seconds")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        for name in arguments.networks.split(","):
            for batch in map(int, arguments.batches.split(",")):
                rows.append(measure(name, batch, arguments.open, folder, arguments.seconds, arguments.limit))
                print(json.dumps(rows[-1]), file=sys.stderr)
                # after each case, so that an interrupted run keeps what it measured
                arguments.out.write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=1) + "\n")
    print("| network | batch | MACs compact / gated | time compact / gated [95 % CI] | share |\n|---|---|---|---|---|")
    for row in rows:
        macs = row["macs"]["compact"] / row["macs"]["gated"]
        if "left_out" in row:
            print(f"| {row['network']} | {row['batch']} | {macs:.3f} | left out: {row['left_out']} | |")
            continue
        found = row["time_ratio"]
        spread = f"{found['ratio']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
        print(f"| {row['network']} | {row['batch']} | {macs:.3f} | {spread} | {row['share']:.2f} |")


if __name__ == "__main__":
    main()
