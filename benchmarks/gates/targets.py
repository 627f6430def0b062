"""Does a target give the compact model that was asked for, and what does a fixed lambda give?

    python -m benchmarks.gates.targets --result benchmarks/gates/targets.json

Trains a small ResNet on scikit-learn's digits: without gates, with a target of 30, 50 and 70 % of the
multiply-accumulates, and with a fixed price on the expected cost. Every figure is measured on the compact ONNX file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gates.small_resnet import SmallResNet, judge, versions
from l0runtime.gates import (
    GateSpec,
    TargetCost,
    Trainer,
    TrainingOptions,
    attach,
    error_rate,
    gates_in,
    load_digits,
    write_records,
)

_KINDS = ("units", "stream")
_TARGETS = (0.7, 0.5, 0.3)
_LAMBDAS = (0.03, 0.1, 0.3, 1.0, 3.0)
_WITHIN_POINTS = 2.0


def train(epochs: int, seed: int, target: float | None, price: float | None) -> tuple[SmallResNet, Trainer]:
    """One run; with neither a target nor a price the network has no gates."""
    inputs, labels, _, _ = load_digits()
    torch.manual_seed(seed)
    model = SmallResNet()
    options = TrainingOptions(
        epochs=epochs,
        batch_size=64,
        learning_rate=2e-3,
        gate_learning_rate=0.03,
        average_decay=0.98,
        seed=seed,
    )
    penalty: Callable[[], Tensor] = lambda: torch.zeros(())  # noqa: E731
    if target is not None or price is not None:
        gates = attach(model, GateSpec(kinds=_KINDS), inputs[:2])
        if target is not None:
            penalty = TargetCost(model, target, epochs * -(-len(labels) // options.batch_size))
        elif price is not None:
            strength = price
            penalty = lambda: strength * gates.costs["macs"].fraction(gates.shares())  # noqa: E731
    trainer = Trainer(model, inputs, labels, penalty, options)
    trainer.run()
    return model, trainer


def run(name: str, epochs: int, seed: int, target: float | None, price: float | None, records: Path) -> dict[str, Any]:
    _, _, test_inputs, test_labels = load_digits()
    begin = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, trainer = train(epochs, seed, target, price)
    result: dict[str, Any] = {"name": name, "seed": seed, "target": target, "lambda": price}
    result["seconds"] = round(time.perf_counter() - begin, 1)
    result["warnings"] = [str(w.message) for w in caught if w.category.__name__ == "GateWarning"]
    best = trainer.evaluated_model
    if gates_in(best) is None:
        result |= {"macs_percent": 100.0, "error_percent": round(100 * error_rate(best, test_inputs, test_labels), 2)}
    else:
        result |= judge(best, test_inputs, test_labels)
        result["kept_percent_by_gates"] = round(100 * (trainer.records[-1].kept_cost or 0), 2)
        write_records(trainer.records, records / f"{name}-{seed}.csv")
    print(json.dumps(result), file=sys.stderr, flush=True)
    return result


def table(runs: list[dict[str, Any]]) -> str:
    """The runs as a Markdown table."""
    lines = ["| run | seed | compact MACs % | off target | error % | parameters % |", "|---|---|---|---|---|---|"]
    for r in runs:
        off = f"{r['macs_percent'] - 100 * r['target']:+.2f}" if r["target"] else ""
        parameters = r.get("parameters_percent", 100.0)
        cells = (r["name"], r["seed"], r["macs_percent"], off, r["error_percent"], parameters)
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, required=True, help="JSON file to write; records go beside it")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", help="names of runs to repeat; the others stay in the result file")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    records = arguments.result.parent / "records"
    records.mkdir(parents=True, exist_ok=True)
    plan: list[tuple[str, float | None, float | None]] = [("no gates", None, None)]
    plan += [(f"target {round(100 * t)} %", t, None) for t in _TARGETS]
    plan += [(f"lambda {price}", None, price) for price in _LAMBDAS]
    runs: list[dict[str, Any]] = []
    if arguments.only and arguments.result.exists():
        runs = json.loads(arguments.result.read_text())["runs"]
    for seed in arguments.seeds:
        for name, target, price in plan:
            if arguments.only and name not in arguments.only:
                continue
            runs = [r for r in runs if (r["name"], r["seed"]) != (name, seed)]
            runs.append(run(name, arguments.epochs, seed, target, price, records))
            document = {"epochs": arguments.epochs, "versions": versions(), "runs": runs}
            arguments.result.write_text(json.dumps(document, indent=1) + "\n")
    print(table(runs))
    missed = [r for r in runs if r["target"] and abs(r["macs_percent"] - 100 * r["target"]) > _WITHIN_POINTS]
    if missed:
        sys.exit(f"missed by more than {_WITHIN_POINTS} points: {', '.join(r['name'] for r in missed)}")


if __name__ == "__main__":
    main()
