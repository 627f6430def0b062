"""How long does one compaction take, and how much memory? Run in a process of its own, so that the peak is its own.

python benchmarks/zoo/compact_once.py gated.onnx compact.onnx      prints one line of JSON
python benchmarks/zoo/compact_once.py                              the same for each pair of paths on stdin

Started by its path, not as a module of the package, which would import torch: that is neither the engine's time nor its
memory. Seconds are processor seconds, which other programs on the machine do not lengthen.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


def _reset_peak() -> None:
    # ru_maxrss survives exec, so it would hold the parent's size; the kernel's own high-water mark can be reset
    Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def compact_file(source: str, target: str, *, gathers: bool = True) -> dict[str, Any]:
    """Compact one file and describe what happened; without `gathers` the engine writes no Gather of its own accord."""
    import onnx_ir as ir

    from converters.compaction import compact

    if not gathers:
        _leave_out_gathers()

    model = ir.load(source)
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    for value in model.graph.initializers.values():  # "what the loaded model needs": all weights in memory
        if value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    before = _resident_bytes()
    _reset_peak()
    started = time.process_time()
    result = compact(model)
    seconds = time.process_time() - started
    peak = _peak_bytes()
    plan = result.plan
    ir.save(result.model, target, external_data=f"{Path(target).name}.data")
    kept = sorted(plan.kept, key=lambda k: -k.cost)[:6]
    return {
        "compaction_seconds": round(seconds, 3),
        "weight_bytes": weights,
        "resident_bytes_before": before,
        "peak_bytes": peak,
        "peak_over_weights": round((peak - before) / max(1, weights), 2),
        "removals": len(plan.removed),
        "without_rule": list(plan.without_rule),
        "kept": [{"value": k.value, "axis": k.axis, "node": k.node, "reason": k.reason, "cost": k.cost} for k in kept],
    }


def serve() -> None:
    """For each line "source<TAB>target" on stdin, one line of JSON; each compaction runs in a fork of its own."""
    import converters.compaction  # noqa: F401 (imported once, before the forks)

    for line in sys.stdin:
        source, target = line.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            try:
                answer = compact_file(source, target)
            except Exception as error:
                answer = {"failure": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            print(json.dumps({"failure": f"the process died with wait status {status}"}), flush=True)


def _leave_out_gathers() -> None:
    """Neither in front of a reader that needs few indices nor in place of a chain of views (a channel shuffle)."""
    from converters.compaction import selection, trials, view_chains

    finish = view_chains._Writer.finish

    def finish_without(self: Any, limit: Any, result: Any) -> None:
        if any(node.op_type == "Gather" for node in self._nodes):
            return self.abandon()
        return finish(self, limit, result)

    selection._pays = lambda source, candidates: False
    trials.gathers_pay = lambda macs, weights, gathers: False
    view_chains._Writer.finish = finish_without  # type: ignore[method-assign]


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(compact_file(sys.argv[1], sys.argv[2])))
    else:
        serve()
