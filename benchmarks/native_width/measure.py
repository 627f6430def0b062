"""Is a compact model as fast as the same architecture built natively at the surviving widths?

    python -m benchmarks.native_width.measure --out benchmarks/native_width/result.json

The ratio is latency of the compact over latency of the native model, in one run, by `compare_speed`; the bar is 1.02.
Both must hold the same multiply-accumulates, or the comparison means nothing. Exit 1 if the bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.native_width.networks import NETWORKS
from benchmarks.native_width.prepare import Files, prepare
from l0runtime.machine import describe_machine, load_average
from l0runtime.measurement import Speed, compare_speed, count_cost
from l0runtime.session import load

BAR = 1.02
DEFAULT = ("LeNet-5", "WRN-16-8", "ResNet-50", "MobileNetV3", "ViT-B", "BERT-base")
# float32, sums of up to 3072 terms through 12 to 50 layers, relative to the output's scale
SAME_FUNCTION = 1e-3


def feed_of(name: str, files: Files, batch: int) -> dict[str, Any]:
    """Inputs of a batch, by the name that the export gave them."""
    import torch

    torch.manual_seed(7)
    arrays = [tensor.numpy() for tensor in NETWORKS[name].inputs(batch)]
    session = load(files.compact, device="cpu", threads=1)
    return {spec.name: array for spec, array in zip(session.inputs, arrays, strict=True)}


def check_same_function(files: Files, feed: dict[str, Any]) -> float:
    """Largest difference between gated and compact, relative to the output's scale.

    Raises:
        AssertionError: it is more than rounding.
    """
    gated, compact = (load(path, device="cpu", threads=1).run(feed) for path in (files.gated, files.compact))
    worst = max(float(np.abs(gated[n] - compact[n]).max() / np.abs(gated[n]).max()) for n in gated)
    assert worst < SAME_FUNCTION, f"{files.compact}: differs from the gated model by {worst}"
    return worst


def inverse(speed: Speed) -> dict[str, float]:
    """Time of the candidate over time of the baseline, with its interval."""
    found = speed.speed_up
    return {"ratio": 1 / found.estimate, "low": 1 / found.high, "high": 1 / found.low}


def measure(name: str, open_share: float, folder: Path, seconds: float) -> dict[str, Any]:
    """One network at batch 1."""
    files = prepare(name, open_share, folder)
    feed = feed_of(name, files, 1)
    compact, native, gated = (count_cost(path, batch=1) for path in (files.compact, files.native, files.gated))
    speed = compare_speed(files.compact, files.native, feed, device="cpu", threads=1, budget_seconds=seconds)
    row = inverse(speed) | {
        "network": name,
        "open_share": open_share,
        "difference_to_gated": check_same_function(files, feed),
        "macs": {"gated": gated.macs, "compact": compact.macs, "native": native.macs},
        "parameters": {"gated": gated.parameters, "compact": compact.parameters, "native": native.parameters},
        "same_macs": compact.macs == native.macs,
        "control": [speed.control.low, speed.control.high],
        "native_ms": float(np.median(speed.samples.block_ms("baseline"))),
        "compact_ms": float(np.median(speed.samples.block_ms("candidate"))),
        "waiting_share": speed.samples.waiting_share(),
        "load_average": load_average(),
    }
    return row | {"met": row["ratio"] <= BAR and row["same_macs"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", default=",".join(DEFAULT))
    parser.add_argument("--open", type=float, default=0.5, help="share of the channels that stay")
    parser.add_argument("--folder", type=Path, help="keep the ONNX files here (several GB)")
    parser.add_argument("--seconds", type=float, default=6.0, help="about how long to time each network")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        for name in arguments.networks.split(","):
            rows.append(measure(name, arguments.open, folder, arguments.seconds))
            print(json.dumps(rows[-1]), file=sys.stderr)
    result = {"bar": BAR, "met": all(row["met"] for row in rows), "machine": describe_machine(), "rows": rows}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print("| network | compact / native [95 % CI] | MACs gated -> compact | bar 1.02 |\n|---|---|---|---|")
    for row in rows:
        ratio = f"{row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        macs = f"{row['macs']['gated'] / 1e6:.1f} M -> {row['macs']['compact'] / 1e6:.1f} M"
        print(f"| {row['network']} | {ratio} | {macs} | {'met' if row['met'] else 'missed'} |")
    return 0 if result["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
