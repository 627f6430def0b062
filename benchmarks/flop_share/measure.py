"""How much of the arithmetic that a compact model saves turns into time, at batch 1, 8 and 32?

    python -m benchmarks.flop_share.measure --out benchmarks/flop_share/result.json

Share = (1 - time compact / time gated) / (1 - MACs compact / MACs gated): 1 if time falls as the arithmetic does, above
1 if by more. The networks and their gates are those of benchmarks/native_width; both times are from one run.

Two ways to measure. "blocks": `compare_speed`, with its 95 % interval. "pairs", where the calls of that would take
longer than `--limit` seconds: single calls of the two models in turns, in random order, by processor time; the median
of the pairs' ratios, and as interval the smallest and the largest of them.
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
from benchmarks.native_width.prepare import Files, prepare
from l0runtime.machine import describe_machine, load_average
from l0runtime.measurement import compare_speed, count_cost
from l0runtime.session import load

BATCHES = (1, 8, 32)
# calls of a comparison in blocks at the least: six rounds of three models, each warmed up twice, three blocks of five
LEAST_CALLS = 6 * 3 * (2 + 3 * 5)
PAIRS = 5


def measure(name: str, batch: int, open_share: float, folder: Path, seconds: float, limit: float) -> dict[str, Any]:
    """One network at one batch size."""
    files = prepare(name, open_share, folder)
    feed = feed_of(name, files, batch)
    macs = {kind: count_cost(getattr(files, kind), batch=batch).macs for kind in ("gated", "compact")}
    row: dict[str, Any] = {"network": name, "batch": batch, "open_share": open_share, "macs": macs}
    if batch == 1:
        row["difference_to_gated"] = check_same_function(files, feed)
    started = time.thread_time()
    load(files.gated, device="cpu", threads=1).run(feed)
    if LEAST_CALLS * (time.thread_time() - started) > limit:
        row |= {"way": "pairs"} | time_pairs(files, feed)
    else:
        row |= {"way": "blocks"} | time_blocks(files, feed, seconds)
    saved = 1 - macs["compact"] / macs["gated"]
    ratio = row["time_ratio"]
    return row | {
        "share": (1 - ratio["ratio"]) / saved,
        "share_low": (1 - ratio["high"]) / saved,
        "share_high": (1 - ratio["low"]) / saved,
        "load_average": load_average(),
    }


def time_blocks(files: Files, feed: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Time of the compact over the gated model, in blocks of calls with fresh sessions."""
    speed = compare_speed(files.compact, files.gated, feed, device="cpu", threads=1, budget_seconds=seconds)
    return {
        "time_ratio": inverse(speed),
        "gated_ms": float(np.median(speed.samples.block_ms("baseline"))),
        "compact_ms": float(np.median(speed.samples.block_ms("candidate"))),
        "waiting_share": speed.samples.waiting_share(),
    }


def time_pairs(files: Files, feed: dict[str, Any]) -> dict[str, Any]:
    """The same for calls of seconds, of which a few are enough."""
    runs = {kind: load(getattr(files, kind), device="cpu", threads=1).bind(feed).run for kind in ("gated", "compact")}
    order = np.random.default_rng(0)
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    for pair in range(PAIRS + 1):
        for index in order.permutation(2):
            kind = list(runs)[index]
            started = time.thread_time()
            runs[kind]()
            if pair:  # the first one warms up
                times[kind].append((time.thread_time() - started) * 1e3)
    ratios = np.array(times["compact"]) / np.array(times["gated"])
    return {
        "time_ratio": {"ratio": float(np.median(ratios)), "low": float(ratios.min()), "high": float(ratios.max())},
        "gated_ms": float(np.median(times["gated"])),
        "compact_ms": float(np.median(times["compact"])),
        "pairs_ms": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", default=",".join(DEFAULT))
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--open", type=float, default=0.5, help="share of the channels that stay")
    parser.add_argument("--folder", type=Path, help="keep the ONNX files here (several GB)")
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long to time blocks")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds above which pairs are timed")
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
    print("| network | batch | MACs compact / gated | time compact / gated | share | way |\n|---|---|---|---|---|---|")
    for row in rows:
        macs, found = row["macs"]["compact"] / row["macs"]["gated"], row["time_ratio"]
        spread = f"{found['ratio']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
        share = f"{row['share']:.2f} [{row['share_low']:.2f}, {row['share_high']:.2f}]"
        print(f"| {row['network']} | {row['batch']} | {macs:.3f} | {spread} | {share} | {row['way']} |")


if __name__ == "__main__":
    main()
