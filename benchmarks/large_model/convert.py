"""Is a model of more than 2 GB, its weights in files of their own, converted exactly, and at what cost?

    python -m benchmarks.large_model.convert --result benchmarks/large_model/result.json

The conversion and both runs of onnxruntime are processes of their own, so that each peak of memory is its own and
never more than one model is loaded. Seconds are given as a multiple of the seconds that onnxruntime needs, in the
same run, to load the gated model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.large_model.build import build

_LIMIT = 1e-5  # of the output's scale: rounding of float32 sums of up to 8192 terms through 18 layers
_BATCH = 4

_RUN = """
import json, resource, sys, time
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
begin = time.perf_counter()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
load = time.perf_counter() - begin
x = np.load(sys.argv[2])
seconds = []
for _ in range(5):
    begin = time.perf_counter()
    y = session.run(None, {"x": x})[0]
    seconds.append(time.perf_counter() - begin)
np.save(sys.argv[3], y)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"load": load, "seconds": sorted(seconds)[2], "peak": peak}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=8192)
    parser.add_argument("--scratch", help="where the models are made; about twice their size is needed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        found = measure(Path(folder), options.blocks, options.width, options.hidden)
    part = options.result.with_suffix(".part")
    part.write_text(json.dumps(found, indent=2) + "\n")
    part.rename(options.result)
    print(json.dumps(found, indent=2))
    sys.exit(0 if found["exact"] else 1)


def measure(folder: Path, blocks: int, width: int, hidden: int) -> dict[str, Any]:
    """Make the model, convert it by the command line, and compare both files in onnxruntime."""
    gated, compact, report = (
        build(folder, blocks=blocks, width=width, hidden=hidden),
        folder / "c.onnx",
        folder / "r.json",
    )
    data = sorted(folder.glob("weights-*.bin"))
    child = subprocess.run(
        [sys.executable, "-m", "l0runtime", "convert", str(gated), "-o", str(compact), "--report", str(report)],
        check=False,
        capture_output=True,
        text=True,
    )
    if child.returncode:
        return {"exact": False, "error": child.stderr.strip().splitlines()[-1:]}
    said = json.loads(report.read_text())
    feed = folder / "x.npy"
    np.save(feed, np.random.default_rng(1).standard_normal((_BATCH, width), np.float32))
    runs = {}
    outputs = {}
    for name, path in (("gated", gated), ("compact", compact)):
        target = folder / f"{name}.npy"
        out = subprocess.run(
            [sys.executable, "-c", _RUN, str(path), str(feed), str(target)], check=True, capture_output=True
        )
        runs[name], outputs[name] = json.loads(out.stdout), np.load(target)
    difference = float(np.abs(outputs["gated"] - outputs["compact"]).max() / np.abs(outputs["gated"]).max())
    weights = sum(path.stat().st_size for path in data)
    return {
        "exact": difference <= _LIMIT,
        "difference_float32": difference,
        "gated_bytes": gated.stat().st_size + weights,
        "compact_bytes": sum(path.stat().st_size for path in folder.glob("c.onnx*")),
        "parameters": [said["before"]["parameters"], said["after"]["parameters"]],
        "smallest_possible_parameters": blocks * (2 * width * (hidden // 2) + hidden // 2),
        "peak_over_gated_weights": {
            "convert": round(said["peak_memory_bytes"] / weights, 2),
            "run gated": round(runs["gated"]["peak"] / weights, 2),
            "run compact": round(runs["compact"]["peak"] / weights, 2),
        },
        "stage_over_onnxruntime_load": {
            stage: round(seconds / runs["gated"]["load"], 2) for stage, seconds in said["seconds"].items()
        },
        "speedup_batch_4": round(runs["gated"]["seconds"] / runs["compact"]["seconds"], 2),
        "kept": said["kept"],
    }


if __name__ == "__main__":
    main()
