"""Does a network that runs a part of itself for hard digits only spend less than a static one of the same error?

    python -m benchmarks.conditional.trained --data path/to/mnist

Static networks of several widths, and static ones compacted by L0 gates to a target, against: an early exit by
confidence (the threshold is chosen on images held out of the training), an early exit by a trained gate, and residual
blocks with a gate each. All are trained alike. Errors, multiply-accumulates and rates are those of the converted ONNX
files on the 10,000 test images. Writes trained.json after every network; `python -m benchmarks.conditional.pictures`
draws it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import l0runtime
from benchmarks.conditional import digit_networks as networks
from benchmarks.paper.idx import load_mnist
from converters import convert
from l0runtime.conditional.counting import CountingSession
from l0runtime.machine import describe_machine
from l0runtime.measurement.cost import count_cost

RESULT = Path(__file__).with_name("trained.json")
HELD_OUT = 5000  # training images on which thresholds are chosen
BATCH = 128
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
ALLOWED = (0.0, 0.001, 0.003, 0.006)  # error that an exit may cost on the images held out
PICTURED = 0.001  # of which the digits are drawn
STATIC: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "6-12": (6, 12, ()),
    "6-12-12": (6, 12, (12,)),
    "6-12-24": (6, 12, (24,)),
    "6-12-24-24": (6, 12, (24, 24)),
    "8-16-32-32": (8, 16, (32, 32)),
}
TARGETS = (0.5, 0.3, 0.15)  # of the multiply-accumulates of the widest one
WIDE = STATIC["8-16-32-32"]
GATE_RATES = (0.1, 0.3)
BLOCK_SHARES = (0.3, 0.6)


def train(made: networks.Made, x: Tensor, y: Tensor, epochs: int, seed: int) -> float:
    """Adam with one cycle of the learning rate, the batch moved by up to two pixels; returns seconds."""
    net, loss = made
    torch.manual_seed(seed)
    gates = [parameter for name, parameter in net.named_parameters() if name.endswith("log_alpha")]
    weights = [parameter for name, parameter in net.named_parameters() if not name.endswith("log_alpha")]
    groups = [{"params": weights, "lr": 4e-3}, *([{"params": gates, "lr": 3e-2}] if gates else [])]
    optimizer = torch.optim.Adam(groups)
    steps = epochs * -(-len(y) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [group["lr"] for group in groups], steps)
    net.train()
    begin = time.perf_counter()
    for _ in range(epochs):
        for index in torch.split(torch.randperm(len(y)), BATCH):
            optimizer.zero_grad()
            loss(_shifted(x[index]), y[index]).backward()
            optimizer.step()
            schedule.step()
    net.eval()
    return time.perf_counter() - begin


def _shifted(x: Tensor) -> Tensor:
    down, right = (int(n) for n in torch.randint(-2, 3, (2,)))
    return torch.roll(x, (down, right), (2, 3))


def evaluate(path: Path, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Test error and average MACs of an ONNX file; rates, and `spent` for each image, where it is conditional."""
    is_conditional = "conditional" in l0runtime.load(path, device="cpu").metadata
    session = l0runtime.load(path, device="cpu", threads=1, count_blocks=is_conditional)
    name = session.inputs[0].name
    logits = np.concatenate([next(iter(session.run({name: part}).values())) for part in np.array_split(x, 20)])
    found = {
        "error": float((logits.argmax(1) != y).mean()),
        "macs": float(count_cost(path, shapes={name: (1, 1, 28, 28)}).macs),
    }
    if isinstance(session, CountingSession):
        executions = session.executions
        found |= {"macs": executions.macs / executions.samples, "rates": executions.rates}
        found["spent"] = [session.run_counted({name: x[n : n + 1]})[1].macs for n in range(len(x))]
    return found


class Runs:
    """Trained networks, written to the result file one after another."""

    def __init__(self, data: Path, epochs: int, images: int, only: str | None = None) -> None:
        arrays = load_mnist(data)
        every = torch.from_numpy(arrays["train_images"].astype(np.float32) / 255)[:, None]
        labels = torch.from_numpy(arrays["train_labels"].astype(np.int64))
        self.x, self.y = every[: min(images, len(every) - HELD_OUT)], labels[: min(images, len(every) - HELD_OUT)]
        self.held_x, self.held_y = every[-HELD_OUT:], labels[-HELD_OUT:]
        self.test_x = (arrays["test_images"].astype(np.float32) / 255)[:, None]
        self.test_y = arrays["test_labels"].astype(np.int64)
        self.epochs, self.steps = epochs, epochs * -(-len(self.y) // BATCH)
        self.only = only
        self.rows: list[dict[str, Any]] = []
        self.spent: list[int] = []
        if only is not None and RESULT.exists():
            before = json.loads(RESULT.read_text())
            self.rows, self.spent = before["rows"], before["spent"]

    def note(self, name: str, kind: str, seed: int, seconds: float, net: nn.Module) -> None:
        """Convert, evaluate the file, write the row."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            if kind == "static":
                torch.onnx.export(net, (self.x[:2],), path, dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False)
            else:
                convert(net, path, example_inputs=(self.x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
            found = evaluate(path, self.test_x, self.test_y)
        row = {"network": name, "kind": kind, "seed": seed, "error": found["error"], "macs": found["macs"]}
        row |= {"rates": found.get("rates", {}), "training_seconds": round(seconds, 1)}
        self.rows = [old for old in self.rows if (old["network"], old["seed"]) != (name, seed)] + [row]
        print(f"{name:40s} seed {seed}: error {row['error']:.2%}, {row['macs']:,.0f} MACs, {seconds:.0f} s", flush=True)
        if name.endswith(f"{PICTURED:.1%} allowed") and seed == 0:
            self.spent = found["spent"]
        self.write()

    def write(self) -> None:
        result = {
            "epochs": self.epochs,
            "training_images": len(self.y),
            "held_out_images": HELD_OUT,
            "rows": self.rows,
            "spent": self.spent,  # of each test image, by the network that the pictures show
            "machine": describe_machine(),
        }
        RESULT.write_text(json.dumps(result) + "\n")

    def one(self, name: str, kind: str, seed: int, make: Any) -> None:
        """Make, train and note one network."""
        if self.only not in (None, name):
            return
        torch.manual_seed(seed)
        made: networks.Made = make()
        seconds = train(made, self.x, self.y, self.epochs, seed)
        net = made[0]
        if not name.startswith("exit by confidence"):
            self.note(name, kind, seed, seconds, net)
            return
        leave = net.get_submodule("1")
        for allowed in ALLOWED:
            threshold = networks.choose_threshold(net, self.held_x, self.held_y, allowed, THRESHOLDS)
            leave.threshold.fill_(threshold)  # type: ignore[operator, union-attr]
            self.note(f"{name}, {threshold:g}, {allowed:.1%} allowed", kind, seed, seconds, net)

    def all(self, seed: int) -> None:
        """All networks with one seed."""
        example = self.x[:2]
        for name, shape in STATIC.items():
            self.one(name, "static", seed, lambda shape=shape: networks.static(*shape))
        for target in TARGETS:
            self.one(
                f"8-16-32-32, L0 gates, target {target:.0%}",
                "compact",
                seed,
                lambda target=target: networks.compacted(*WIDE, target, self.steps, example),
            )
        self.one("exit by confidence", "conditional", seed, lambda: networks.exit_by_confidence(*WIDE))
        for rate in GATE_RATES:
            self.one(
                f"exit by a gate, rate {rate:.0%}",
                "conditional",
                seed,
                lambda rate=rate: networks.exit_by_gate(*WIDE, rate),
            )
        for share in BLOCK_SHARES:
            self.one(
                f"3 gated residual blocks, {share:.0%} of their work",
                "conditional",
                seed,
                lambda share=share: networks.gated_blocks(8, 16, 32, 3, share, example),
            )


def main() -> None:
    """Train all networks, convert them, evaluate the files, write trained.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST's four IDX files")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=60_000, help="training images used, without those held out")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", help="train this network alone, keep the other rows")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = Runs(arguments.data, arguments.epochs, arguments.images, arguments.only)
    for seed in range(arguments.seeds):
        runs.all(seed)


if __name__ == "__main__":
    main()
