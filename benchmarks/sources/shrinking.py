"""Faster training: epoch time and error with and without shrinking, side by side in one run.

    python -m benchmarks.sources.shrinking lenet-5 --data DIR --out benchmarks/sources/shrinking.json
    python -m benchmarks.sources.shrinking wide-resnet --data DIR --out benchmarks/sources/shrinking.json
    python -m benchmarks.sources.shrinking --table --out benchmarks/sources/shrinking.json

DIR holds MNIST's IDX files. Two trainings from the same initial values take turns epoch by epoch on one thread; one of
them removes the gates that are closed for good. The random streams part once gates are gone, so the two end as two
seeds would. What the plain run says of the criterion is counted too: of the gates that were closed for good at some
time, how many were open at the end. Time spent on shrinking counts towards the epoch that it follows.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.paper.idx import load_mnist
from converters import Shrinker
from l0runtime.gates import LeNet5, PaperPenalty, Trainer, TrainingOptions, WideResNet, gates_of, kept_units
from l0runtime.machine import describe_machine

PATIENCE = 2
LEAST_SHARE = 0.05


@dataclass(frozen=True)
class Setting:
    """A network and how it is trained.

    Args:
        examples: training examples taken, from the front.
        shape: of one example; MNIST's image is averaged down and repeated to it.
        lambdas: per gate vector, or one for all; divided by `penalty_examples` in the penalty.
    """

    examples: int
    shape: tuple[int, int, int]
    lambdas: tuple[float, ...]
    penalty_examples: int
    options: TrainingOptions

    def build(self) -> nn.Module:
        raise NotImplementedError


class LeNetSetting(Setting):
    def build(self) -> nn.Module:
        return LeNet5(per_example=True)


class WideResNetSetting(Setting):
    def build(self) -> nn.Module:
        return WideResNet(10, 2, per_example=False)


SETTINGS: dict[str, Setting] = {
    # the paper's network, penalty and optimizer; fewer examples and faster gates, for a run of minutes
    "lenet-5": LeNetSetting(
        10_000,
        (1, 28, 28),
        (10.0, 0.5, 0.1, 10.0),
        60_000,
        TrainingOptions(epochs=15, gate_learning_rate=2e-2, average_decay=0.98),
    ),
    "wide-resnet": WideResNetSetting(
        3_000,
        (3, 14, 14),
        (0.1,),
        3_000,
        TrainingOptions(epochs=15, batch_size=50, gate_learning_rate=4e-2, average_decay=0.95),
    ),
}


def images_of(raw: np.ndarray[Any, Any], shape: tuple[int, int, int]) -> Tensor:
    """MNIST's images in [0, 1], [N, *shape]."""
    images = torch.from_numpy(raw.copy()).unsqueeze(1).float() / 255
    if shape[1] != images.shape[2]:
        images = F.avg_pool2d(images, images.shape[2] // shape[1])
    return images.expand(-1, shape[0], -1, -1).contiguous()


def compare(name: str, setting: Setting, data: Path, epochs: int | None) -> dict[str, Any]:
    """Train twice, epoch by epoch in turns."""
    mnist = load_mnist(data)
    train_x = images_of(mnist["train_images"][: setting.examples], setting.shape)
    train_y = torch.from_numpy(mnist["train_labels"][: setting.examples].copy()).long()
    test_x, test_y = (
        images_of(mnist["test_images"], setting.shape),
        torch.from_numpy(mnist["test_labels"].copy()).long(),
    )
    options = setting.options if epochs is None else TrainingOptions(**{**vars(setting.options), "epochs": epochs})
    torch.manual_seed(0)
    model = setting.build().to(memory_format=torch.channels_last)
    trainers: dict[str, Trainer] = {}
    for kind in ("whole", "shrinking"):
        twin = copy.deepcopy(model)
        penalty = PaperPenalty(twin, setting.lambdas, setting.penalty_examples)
        trainers[kind] = Trainer(twin, train_x, train_y, penalty, options)
    shrinker = Shrinker(trainers["shrinking"], patience=PATIENCE, least_share=LEAST_SHARE)
    observer = Shrinker(trainers["whole"], patience=PATIENCE, least_share=0.999999)  # counts, and never shrinks
    ever_closed = {name: torch.zeros(gate.size, dtype=torch.bool) for name, gate in gates_of(model).items()}
    rows: list[dict[str, Any]] = []
    shown = shown_epochs(options.epochs)
    for epoch in range(options.epochs):
        row: dict[str, Any] = {"epoch": epoch + 1}
        for kind, trainer in trainers.items():
            torch.manual_seed(1000 + epoch)
            begin, begin_cpu = time.perf_counter(), time.process_time()
            record = trainer.run_epoch()
            done = shrinker(record) if kind == "shrinking" else None
            row[kind] = {
                "seconds": time.perf_counter() - begin,
                "cpu_seconds": time.process_time() - begin_cpu,
                "shrinking_seconds": 0.0 if done is None else done.seconds,
                "loss": record.loss,
                "kept": record.kept,
                "error_percent": 100 * trainer.evaluate(test_x, test_y) if epoch + 1 in shown else None,
                "parameters": sum(p.numel() for p in trainer.model.parameters()),
            }
        observer()
        for gates, count in observer.epochs_closed.items():
            ever_closed[gates] |= count >= PATIENCE
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    end_open = {gates: ~gate.closed() for gates, gate in gates_of(trainers["whole"].model).items()}
    return {
        "examples": setting.examples,
        "lambdas": list(setting.lambdas),
        "penalty_examples": setting.penalty_examples,
        "options": vars(options),
        "patience": PATIENCE,
        "least_share": LEAST_SHARE,
        "units": {gates: list(counts) for gates, counts in kept_units(trainers["whole"].evaluated_model).items()},
        "units_shrunk": {gates: kept for gates, (kept, _) in kept_units(trainers["shrinking"].evaluated_model).items()},
        "closed_for_good": sum(int(mask.sum()) for mask in ever_closed.values()),
        "reopened": sum(int((ever_closed[gates] & end_open[gates]).sum()) for gates in ever_closed),
        "epochs": rows,
    }


def shown_epochs(epochs: int) -> list[int]:
    """Those in which the error is measured: the first, the last, and two between."""
    return sorted({1, max(1, epochs // 3), max(1, 2 * epochs // 3), epochs})


def table(result: dict[str, Any]) -> str:
    """The result as Markdown: a few epochs of each network, and the sums."""
    lines = [
        "| network | epoch | CPU s, whole | CPU s, shrinking | ratio | kept, whole | kept, shrinking "
        "| error %, whole | error %, shrinking |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, run in result["runs"].items():
        rows = run["epochs"]
        for row in (rows[number - 1] for number in shown_epochs(len(rows))):
            whole, narrow = row["whole"], row["shrinking"]
            lines.append(
                f"| {name} | {row['epoch']} | {whole['cpu_seconds']:.1f} | {narrow['cpu_seconds']:.1f} | "
                f"{whole['cpu_seconds'] / narrow['cpu_seconds']:.2f} | {whole['kept']} | {narrow['kept']} | "
                f"{whole['error_percent']:.2f} | {narrow['error_percent']:.2f} |"
            )
        total = [sum(row[kind]["cpu_seconds"] for row in rows) for kind in ("whole", "shrinking")]
        spent = sum(row["shrinking"]["shrinking_seconds"] for row in rows)
        lines.append(
            f"| {name} | all {len(rows)} | {total[0]:.0f} | {total[1]:.0f} ({spent:.0f} of it shrinking) | "
            f"{total[0] / total[1]:.2f} | | | | |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", choices=SETTINGS)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    result = json.loads(options.out.read_text()) if options.out.exists() else {"runs": {}}
    if options.table:
        print(table(result))
        return
    if options.network is None or options.data is None:
        parser.error("a network and --data are needed to train")
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = compare(options.network, SETTINGS[options.network], options.data, options.epochs)
    result["runs"][options.network] = run
    result["machine"] = describe_machine()
    temporary = options.out.with_name(f".{options.out.name}.{os.getpid()}")
    temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    temporary.replace(options.out)
    print(table(result))


if __name__ == "__main__":
    main()
