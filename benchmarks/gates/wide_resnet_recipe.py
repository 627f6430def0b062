"""Does the paper's WideResNet recipe prune, and does it with a learning rate of the gates' own?

    python -m benchmarks.gates.wide_resnet_recipe --result benchmarks/gates/wide_resnet_recipe.json

The paper's network and settings, reduced: WRN-10-1 (3 blocks of 16, 32 and 64 channels) on scikit-learn's digits,
SGD with Nesterov momentum 0.9 and learning rate 0.1, times 0.2 at 30, 60 and 80 % of the epochs, batch 128, drop rate
0.3, weight decay 5e-4 through the gates, lambda 0.001 as in the authors' code. Four runs: as published; the same with
a lambda ten times as large; and both with Adam at 0.05 for the gates alone (the L2 term detached from them).
The loop is plain PyTorch. Every figure of what is left is measured on the compact ONNX file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gates.small_resnet import judge, versions
from l0runtime.gates import GateWarning, GateWatch, PaperPenalty, WideResNet, gates_of, load_digits, param_groups

_BATCH = 128
_PAPER_LAMBDA = 0.001
_OWN_RATE = 0.05


def colour(images: Tensor) -> Tensor:
    """Grey images as three equal channels, which the network expects."""
    return images.expand(-1, 3, -1, -1).contiguous()


def train(epochs: int, strength: float, own_rate: float | None, seed: int) -> tuple[WideResNet, list[str]]:
    """The model after training, and the warnings about its gates."""
    inputs, labels, _, _ = load_digits()
    inputs = colour(inputs)
    torch.manual_seed(seed)
    model = WideResNet(depth=10, widen=1, drop_rate=0.3)
    penalty = PaperPenalty(model, [strength], len(labels), weight_decay=5e-4, detach_weight_decay=own_rate is not None)
    weights, gates = param_groups(model, 0.1, own_rate)
    optimizers: list[torch.optim.Optimizer]
    if own_rate is None:
        optimizers = [torch.optim.SGD([weights, gates], momentum=0.9, nesterov=True)]
    else:
        optimizers = [torch.optim.SGD([weights], momentum=0.9, nesterov=True), torch.optim.Adam([gates])]
    falls = [round(share * epochs) for share in (0.3, 0.6, 0.8)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizers[0], falls, 0.2)
    steps_per_epoch = -(-len(labels) // _BATCH)
    watch = GateWatch(model, epochs * steps_per_epoch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", GateWarning)
        for epoch in range(epochs):
            model.train()
            for index in torch.randperm(len(labels)).split(_BATCH):
                loss = F.cross_entropy(model(inputs[index]), labels[index]) + penalty()
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss.backward()
                for optimizer in optimizers:
                    optimizer.step()
                for gate in gates_of(model).values():
                    gate.clamp_()
            schedule.step()
            watch.warn((epoch + 1) * steps_per_epoch)
    return model, [str(item.message) for item in caught if issubclass(item.category, GateWarning)]


def run(name: str, epochs: int, strength: float, own_rate: float | None) -> dict[str, Any]:
    begin = time.perf_counter()
    model, told = train(epochs, strength, own_rate, seed=0)
    model.eval()
    _, _, test_inputs, test_labels = load_digits()
    lowest = min(float(gate.log_alpha.detach().min()) for gate in gates_of(model).values())
    result: dict[str, Any] = {
        "name": name,
        "lambda": strength,
        "gate_learning_rate": own_rate,
        "seconds": round(time.perf_counter() - begin, 1),
        "closed": sum(int(gate.closed().sum()) for gate in gates_of(model).values()),
        "gates": sum(gate.size for gate in gates_of(model).values()),
        "lowest_log_alpha": round(lowest, 2),
        "warnings": told,
    }
    result |= judge(model, colour(test_inputs), test_labels)
    print(json.dumps(result), file=sys.stderr, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--only", nargs="+", help="names of runs to repeat; the others stay in the result file")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    plan = [
        ("the paper's recipe", _PAPER_LAMBDA, None),
        ("a lambda 10 times as large", 10 * _PAPER_LAMBDA, None),
        ("a rate of the gates' own", _PAPER_LAMBDA, _OWN_RATE),
        ("both", 10 * _PAPER_LAMBDA, _OWN_RATE),
    ]
    runs: list[dict[str, Any]] = []
    if arguments.only and arguments.result.exists():
        runs = json.loads(arguments.result.read_text())["runs"]
    for name, strength, rate in plan:
        if arguments.only and name not in arguments.only:
            continue
        runs = [*(r for r in runs if r["name"] != name), run(name, arguments.epochs, strength, rate)]
        document = {"epochs": arguments.epochs, "versions": versions(), "runs": runs}
        arguments.result.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
