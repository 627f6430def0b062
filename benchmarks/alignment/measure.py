"""Is a model faster with `--align auto`, and never slower?

    python -m benchmarks.alignment.measure --out benchmarks/alignment/result.json

Each gated model is converted twice, unaligned and aligned, and the two compact files are timed against each other by
`compare_speed`, with another seed than the conversion used. Bars: 63 of 64 channels gain at least 20 %; no model is
slower beyond doubt; a second conversion measures no layer again. Exit 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.alignment.models import save_chain, save_network
from converters import convert
from l0runtime.machine import describe_machine, load_average
from l0runtime.measurement import compare_speed
from l0runtime.measurement.statistics import Verdict
from l0runtime.sample_inputs import sample_inputs

GAIN_NEEDED = 1.2
CHAIN = "chain, 63 of 64"
DEFAULT = (CHAIN, "LeNet-5", "MobileNetV3", "WRN-16-8", "ResNet-50")
SEED = 99


def measure(name: str, folder: Path, seconds: float) -> dict[str, Any]:
    """One model at batch 1."""
    gated = save_chain(folder) if name == CHAIN else save_network(name, folder)
    plain, aligned, again = (folder / f"{gated.stem}-{kind}.onnx" for kind in ("none", "auto", "again"))
    convert(gated, plain, exact=False)
    notes, taken = [], []
    for path in (aligned, again):
        started = time.perf_counter()
        notes.append(convert(gated, path, align="auto", exact=False).notes[0])
        taken.append(time.perf_counter() - started)
    row = {
        "model": name,
        "note": notes[0],
        "padded": re.search(r"\d widths padded,", notes[0]) is not None,
        "layer_times_measured": [int(re.findall(r"\((\d+) layer times", note)[0]) for note in notes],
        "seconds": taken,
        "load_average": load_average(),
    }
    if not row["padded"]:
        return row  # the file is the unaligned one
    speed = compare_speed(
        aligned, plain, sample_inputs(gated), device="cpu", threads=1, budget_seconds=seconds, seed=SEED
    )
    found = speed.speed_up
    return row | {
        "speed_up": {"estimate": found.estimate, "low": found.low, "high": found.high},
        "control": [speed.control.low, speed.control.high],
        "slower": speed.verdict is Verdict.NOT_FASTER,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", default=";".join(DEFAULT), help="separated by semicolons")
    parser.add_argument("--folder", type=Path, help="keep the ONNX files here")
    parser.add_argument("--seconds", type=float, default=4.0, help="about how long to time each model")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["L0RUNTIME_CACHE"] = str(Path(temporary) / "cache")  # an empty table of layer times
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in arguments.models.split(";"):
            rows.append(measure(name, folder, arguments.seconds))
            print(json.dumps(rows[-1]), file=sys.stderr)
    chain = [row["speed_up"]["estimate"] for row in rows if row["model"] == CHAIN and row["padded"]]
    bars = {
        "gain_of_63_against_64": chain[0] if chain else None,
        "gain_needed": GAIN_NEEDED,
        "slower_than_unaligned": [row["model"] for row in rows if row.get("slower")],
        "measured_again": [row["model"] for row in rows if row["layer_times_measured"][1]],
    }
    met = bool(chain) and chain[0] >= GAIN_NEEDED
    met = met and not bars["slower_than_unaligned"] and not bars["measured_again"]
    result = {"bars": bars, "met": met, "machine": describe_machine(), "rows": rows}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print("| model | aligned / unaligned, times as fast [95 % CI] | layer times measured | again | seconds | again |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        found = row.get("speed_up")
        shown = "left unpadded"
        if found:
            shown = f"{found['estimate']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
        counts, taken = row["layer_times_measured"], row["seconds"]
        print(f"| {row['model']} | {shown} | {counts[0]} | {counts[1]} | {taken[0]:.1f} | {taken[1]:.1f} |")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
