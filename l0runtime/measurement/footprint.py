"""What does a model cost before it is warm: time to the first answer, and memory, in a fresh process?

Run as `python -m l0runtime.measurement.footprint`: it reads its arguments as JSON on stdin and prints JSON.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from l0runtime.errors import L0RuntimeError

_TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Footprint:
    """A fresh process, Python and onnxruntime already imported.

    Attributes:
        load_ms: from the file to a session.
        first_run_ms: the first call after that.
        peak_memory_bytes: growth of the process's peak resident memory over loading and running; None where the
            system does not tell. GPU memory is not included.
    """

    load_ms: float
    first_run_ms: float
    peak_memory_bytes: int | None

    @property
    def cold_start_ms(self) -> float:
        return self.load_ms + self.first_run_ms


def measure_footprint(
    path: str | Path, feed: Mapping[str, np.ndarray[Any, Any]], *, device: str, threads: int
) -> Footprint:
    """Load and run a model once in a process of its own.

    Args:
        path: the model.
        feed: inputs, of which only dtypes and shapes are used; the values are zeros.
        device, threads: as in `l0runtime.load`.
    Raises:
        L0RuntimeError: that process failed.
    """
    request = {
        "path": str(path),
        "inputs": {name: [array.dtype.name, list(array.shape)] for name, array in feed.items()},
        "device": device,
        "threads": threads,
    }
    done = subprocess.run(
        [sys.executable, "-m", "l0runtime.measurement.footprint"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        # the child must import this very package, wherever it was found
        env=os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
        check=False,
    )
    if done.returncode != 0:
        raise L0RuntimeError(
            f"{path}: measuring in a fresh process failed: {(done.stderr.strip().splitlines() or [''])[-1]}"
        )
    return Footprint(**json.loads(done.stdout.splitlines()[-1]))


def _peak_memory_bytes() -> int | None:
    """This process's peak resident memory.

    Not from getrusage: on Linux its figure survives exec, so a child starts with its parent's peak.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    match = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _main() -> None:
    import onnxruntime

    from l0runtime.session import load
    from l0runtime.session.specs import numpy_dtype

    assert onnxruntime.__version__  # imported now, so that it is not charged to the model
    request = json.load(sys.stdin)
    # the model itself is not read for this: it would already be in the peak
    feed = {name: np.zeros(shape, numpy_dtype(dtype)) for name, (dtype, shape) in request["inputs"].items()}
    before = _peak_memory_bytes()
    started = time.perf_counter()
    session = load(request["path"], device=request["device"], threads=request["threads"])
    loaded = time.perf_counter()
    session.run(feed)
    finished = time.perf_counter()
    after = _peak_memory_bytes()
    peak = after - before if before is not None and after is not None else None
    print(json.dumps(asdict(Footprint((loaded - started) * 1e3, (finished - loaded) * 1e3, peak))))


if __name__ == "__main__":
    _main()
