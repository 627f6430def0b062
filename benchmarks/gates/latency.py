"""Does a latency target, by a table of layer times measured on this machine, give a network that is that fast?

    python -m benchmarks.gates.latency train --folder DIR
    python -m benchmarks.gates.latency measure --folder DIR --result benchmarks/gates/latency.json

Trains the small ResNet, twice as wide, on scikit-learn's digits with a target of 70 and of 50 % of its latency at
batch 32 on one CPU thread, converts it (padded to the widths that measure fastest, `align="auto"`, which is what the
table assumes), and compares the compact file with the gated one by `l0runtime.bench`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

import l0runtime
from benchmarks.gates.small_resnet import SmallResNet, versions
from converters import convert
from converters.alignment import Target
from l0runtime.gates import (
    GateSpec,
    GateWarning,
    LatencyTable,
    TargetCost,
    Trainer,
    TrainingOptions,
    attach,
    load_digits,
    measure_latency,
    write_records,
)

_WIDTH = 32
_BATCH = 32
_TARGETS = (0.7, 0.5)


def train(target: float, epochs: int, folder: Path) -> dict[str, Any]:
    inputs, labels, test_inputs, test_labels = load_digits()
    torch.manual_seed(0)
    model = SmallResNet(_WIDTH)
    attach(model, GateSpec(kinds=("units", "stream")), inputs[:2])
    path = folder / "table.json"
    if not path.exists():  # one table for all targets
        measure_latency(model, inputs[:2], batch=_BATCH).save(path)
    table = LatencyTable.load(path)
    options = TrainingOptions(
        epochs=epochs, batch_size=64, learning_rate=2e-3, gate_learning_rate=0.03, average_decay=0.98
    )
    begin = time.perf_counter()
    objective = TargetCost(model, target, epochs * -(-len(labels) // options.batch_size), cost=table)
    trainer = Trainer(model, inputs, labels, objective, options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", GateWarning)
        trainer.run()
    name = f"latency {round(100 * target)} %"
    write_records(trainer.records, folder / f"{name}.csv")
    compact, gated = folder / f"{name}.compact.onnx", folder / f"{name}.gated.onnx"
    done = convert(
        trainer.evaluated_model.eval(),
        compact,
        example_inputs=(inputs[:2],),
        gated_output=gated,
        align="auto",
        align_for=Target(batch=_BATCH),
    )
    logits = np.asarray(l0runtime.load(str(compact), device="cpu")(test_inputs.numpy()))
    result = {
        "name": name,
        "target": target,
        "seconds": round(time.perf_counter() - begin, 1),
        "kept": trainer.records[-1].kept,
        "predicted_percent": round(100 * (trainer.records[-1].kept_cost or 0), 1),
        "error_percent": round(100 * float((logits.argmax(1) != test_labels.numpy()).mean()), 2),
        "difference": done.verification.largest,
        "warnings": [str(item.message) for item in caught if issubclass(item.category, GateWarning)],
        "table_total_ms": round(table.total_ms, 4),
    }
    print(json.dumps(result), file=sys.stderr, flush=True)
    return result


def measured(name: str, folder: Path) -> dict[str, Any]:
    found = l0runtime.bench(
        folder / f"{name}.compact.onnx",
        folder / f"{name}.gated.onnx",
        batch=_BATCH,
        dims={"height": 8, "width": 8},
        device="cpu",
        footprint=False,
    )
    (item,) = found.results
    speed = item.speed_up
    return {
        "measured_percent": round(100 / speed.estimate, 1),
        "measured_interval": [round(100 / speed.high, 1), round(100 / speed.low, 1)],
        "control": [round(item.control.low, 3), round(item.control.high, 3)],
        "gated_ms": round(item.baseline.p50_ms, 4),
        "compact_ms": round(item.candidate.p50_ms, 4),
        "macs_percent": round(100 * item.candidate_macs / item.baseline_macs, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["train", "measure"])
    parser.add_argument("--folder", type=Path, required=True, help="where the two steps keep tables and models")
    parser.add_argument("--result", type=Path, help="of `measure`: JSON file to write")
    parser.add_argument("--epochs", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts = arguments.folder / "trained.json"
    if arguments.step == "train":
        arguments.folder.mkdir(parents=True, exist_ok=True)
        runs = [train(target, arguments.epochs, arguments.folder) for target in _TARGETS]
        facts.write_text(json.dumps(runs, indent=1))
        return
    if arguments.result is None:
        parser.error("measure needs --result")
    runs = [run | measured(run["name"], arguments.folder) for run in json.loads(facts.read_text())]
    document = {"batch": _BATCH, "versions": versions(), "runs": runs}
    arguments.result.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
