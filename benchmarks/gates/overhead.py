"""What do attached gates add to a training step?

    python -m benchmarks.gates.overhead --result benchmarks/gates/overhead.json

A step is forward, cross entropy, backward and Adam; with gates also the draw of all gates, the objective (TargetCost)
and the clamp. Both models take turns in one process, in random order; the figure is the median of the ratios of pairs,
with a bootstrap interval. With one thread a step is timed by the processor time of the process, which other load on the
machine hardly touches, else by the clock. Needs timm.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import benchmarks.zoo.torchvision_operators  # noqa: F401  # before timm, which imports torchvision
from benchmarks.gates.small_resnet import versions
from l0runtime.gates import GateSpec, TargetCost, attach, param_groups

_BAR = 1.10
_MODELS = {"resnet18": 224, "vit_tiny_patch16_224": 224}


def plain_step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    model.train()

    def step() -> None:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def gated_step(model: nn.Module, x: Tensor, y: Tensor, spec: GateSpec) -> tuple[Callable[[], None], int]:
    gates = attach(model, spec, x[:2])
    objective = TargetCost(model, 0.5, 1000)
    optimizer = torch.optim.Adam(param_groups(model, 1e-4, 0.02))
    model.train()

    def step() -> None:
        loss = F.cross_entropy(model(x), y) + objective()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        for gate in gates:
            gate.clamp_()

    return step, sum(place.size for place in gates.places)


def seconds(step: Callable[[], None]) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    step()
    return clock() - begin


def compare(name: str, batch: int, pairs: int, per_example: bool) -> dict[str, Any]:
    import timm

    torch.manual_seed(0)
    size = _MODELS[name]
    x, y = torch.randn(batch, 3, size, size), torch.randint(0, 1000, (batch,))
    base = timm.create_model(name)
    kinds = ("units",) if per_example else ("units", "heads", "stream", "blocks")
    gated, count = gated_step(copy.deepcopy(base), x, y, GateSpec(kinds=kinds, per_example=per_example))
    plain = plain_step(base, x, y)
    for step in (plain, gated, plain, gated):  # warm up
        step()
    ratios, plain_times = [], []
    order = random.Random(0)
    for _ in range(pairs):
        if order.random() < 0.5:
            a = seconds(plain)
            b = seconds(gated)
        else:
            b = seconds(gated)
            a = seconds(plain)
        ratios.append(b / a)
        plain_times.append(a)
    draws = sorted(statistics.median(order.choices(ratios, k=len(ratios))) for _ in range(2000))
    result = {
        "model": name,
        "batch": batch,
        "image": size,
        "samples": "per example" if per_example else "per batch",
        "kinds": list(kinds),
        "gates": count,
        "pairs": pairs,
        "ratio": round(statistics.median(ratios), 4),
        "interval": [round(draws[50], 4), round(draws[1949], 4)],
        "clock": "processor time" if torch.get_num_threads() == 1 else "wall clock",
        "plain_step_ms": round(1000 * statistics.median(plain_times), 1),
    }
    print(json.dumps(result), file=sys.stderr, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    runs: list[dict[str, Any]] = []
    for name, per_example in (*((name, False) for name in _MODELS), ("resnet18", True)):
        runs.append(compare(name, arguments.batch, arguments.pairs, per_example))
        document = {"bar": _BAR, "versions": {**versions(), "timm": version("timm")}, "runs": runs}
        arguments.result.write_text(json.dumps(document, indent=1) + "\n")
    missed = [r["model"] for r in runs if r["samples"] == "per batch" and r["ratio"] > _BAR]
    if missed:
        sys.exit(f"missed: {', '.join(missed)} above {_BAR}")


if __name__ == "__main__":
    main()
