"""Does a network that lets easy digits leave early spend less than a static one of the same error?

    python -m benchmarks.conditional.trained --data path/to/mnist

All networks begin alike (two convolutions of stride 2) and differ in what follows. `static` ones run the same for every
image: narrow and wide ones, and a wide one with L0 gates, compacted. The conditional one classifies by the first
features where it is sure, and runs a wide rest where it is not; the threshold is chosen on images held out of the
training. Errors and multiply-accumulates are those of the converted ONNX files on the test images.
"""

from __future__ import annotations

import argparse
import json
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import l0runtime
from benchmarks.paper.idx import load_mnist
from converters import convert
from l0runtime.conditional.counting import CountingSession
from l0runtime.gates import GatedConv2d, PaperPenalty
from l0runtime.gates.conditional import ConfidenceExit
from l0runtime.machine import describe_machine
from l0runtime.measurement.cost import count_cost

HERE = Path(__file__).parent
HELD_OUT = 5000  # training images on which thresholds are chosen
BATCH = 128
THRESHOLDS = (0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)


def convolution(width_in: int, width_out: int, stride: int = 1, gated: bool = False) -> nn.Sequential:
    """Convolution, normalisation, activation."""
    layer = GatedConv2d if gated else nn.Conv2d
    return nn.Sequential(layer(width_in, width_out, 3, stride, 1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU())


class Mean(nn.Module):
    """Mean over space."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def static_network(first: int, second: int, rest: Sequence[int], gated: bool = False) -> nn.Sequential:
    """28x28 -> first channels at 14x14 -> second at 7x7 -> the rest at 7x7 -> mean -> 10 classes."""
    layers: list[nn.Module] = [convolution(1, first, 2, gated), convolution(first, second, 2, gated)]
    width = second
    for wider in rest:
        layers.append(convolution(width, wider, gated=gated))
        width = wider
    return nn.Sequential(*layers, Mean(), nn.Linear(width, 10))


def conditional_network(first: int, second: int, rest: Sequence[int]) -> nn.Sequential:
    """The same, with a linear classifier on the 7x7 features as a way out."""
    head = nn.Sequential(nn.Flatten(), nn.Linear(49 * second, 10))
    tail = static_network(1, second, rest)[2:]
    return nn.Sequential(convolution(1, first, 2), convolution(first, second, 2), ConfidenceExit(head, tail))


def train(
    net: nn.Module, x: Tensor, y: Tensor, epochs: int, losses: Callable[[Tensor, Tensor], Tensor], seed: int
) -> float:
    """Adam with a learning rate that falls to zero; returns seconds."""
    torch.manual_seed(seed)
    gates = [parameter for name, parameter in net.named_parameters() if name.endswith("log_alpha")]
    weights = [parameter for name, parameter in net.named_parameters() if not name.endswith("log_alpha")]
    optimizer = torch.optim.Adam([{"params": weights, "lr": 4e-3}, {"params": gates, "lr": 2e-2}])
    steps = epochs * -(-len(y) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [4e-3, 2e-2], steps)
    net.train()
    begin = time.perf_counter()
    for _ in range(epochs):
        for index in torch.split(torch.randperm(len(y)), BATCH):
            shifted = _shifted(x[index])
            optimizer.zero_grad()
            losses(shifted, y[index]).backward()
            optimizer.step()
            schedule.step()
    net.eval()
    return time.perf_counter() - begin


def _shifted(x: Tensor) -> Tensor:
    """The whole batch moved by up to two pixels."""
    down, right = (int(n) for n in torch.randint(-2, 3, (2,)))
    return torch.roll(x, (down, right), (2, 3))


def evaluate(path: Path, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Test error, and average MACs, of an ONNX file; `spent` per image where it is conditional."""
    is_conditional = any(entry.startswith("conditional") for entry in l0runtime.load(path, device="cpu").metadata)
    session = l0runtime.load(path, device="cpu", threads=1, count_blocks=is_conditional)
    name = session.inputs[0].name
    logits = np.concatenate([next(iter(session.run({name: part}).values())) for part in np.array_split(x, 20)])
    wrong = logits.argmax(1) != y
    found = {"error": float(wrong.mean()), "macs": float(count_cost(path, shapes={name: (1, 1, 28, 28)}).macs)}
    if isinstance(session, CountingSession):
        executions = session.executions
        found |= {"macs": executions.macs / executions.samples, "rates": executions.rates}
        found["spent"] = [session.run_counted({name: x[n : n + 1]})[1].macs for n in range(len(x))]
    return found | {"wrong": np.flatnonzero(wrong).tolist()}


def choose_threshold(net: nn.Sequential, x: Tensor, y: Tensor, allowed: float) -> float:
    """The smallest threshold that costs at most `allowed` of error over the full network, on held-out images."""
    leave = net[2]
    assert isinstance(leave, ConfidenceExit)
    with torch.no_grad():
        early, late = leave.both(net[:2](x))
    sure = torch.softmax(early, 1).amax(1)
    full = float((late.argmax(1) != y).float().mean())
    for threshold in THRESHOLDS:
        chosen = torch.where((sure < threshold)[:, None], late, early)
        if float((chosen.argmax(1) != y).float().mean()) <= full + allowed:
            return threshold
    return 1.0


def write_png(path: Path, image: np.ndarray) -> None:
    """A grey image, uint8 [height, width]."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = image.shape
    rows = b"".join(b"\0" + image[row].tobytes() for row in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    )


def contact_sheet(images: np.ndarray, columns: int = 10) -> np.ndarray:
    """Images [n, 28, 28] side by side, twice as large, dark on light."""
    rows = [np.concatenate(list(images[start : start + columns]), 1) for start in range(0, len(images), columns)]
    sheet = 255 - np.concatenate(rows, 0)
    return np.ascontiguousarray(sheet.repeat(2, 0).repeat(2, 1))


def main() -> None:
    """Train all networks, convert them, evaluate the files, write trained.json and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST's four IDX files")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=30_000, help="training images used")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arrays = load_mnist(arguments.data)
    images = torch.from_numpy(arrays["train_images"].astype(np.float32) / 255)[:, None]
    labels = torch.from_numpy(arrays["train_labels"].astype(np.int64))
    x, y = images[: arguments.images], labels[: arguments.images]
    held_x, held_y = images[-HELD_OUT:], labels[-HELD_OUT:]
    test_x = (arrays["test_images"].astype(np.float32) / 255)[:, None]
    test_y = arrays["test_labels"].astype(np.int64)

    rows: list[dict[str, Any]] = []

    def note(kind: str, seed: int, seconds: float, path: Path) -> dict[str, Any]:
        found = evaluate(path, test_x, test_y)
        row = {"network": kind, "seed": seed, "error": found["error"], "macs": found["macs"]}
        row |= {"rates": found.get("rates", {}), "seconds": round(seconds, 1)}
        rows.append(row)
        print(f"{kind:40s} seed {seed}: error {row['error']:.2%}, {row['macs']:,.0f} MACs, {seconds:.0f} s", flush=True)
        return found

    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            for name, shape in {
                "static 6-12": (6, 12, ()),
                "static 6-12-12": (6, 12, (12,)),
                "static 6-12-24": (6, 12, (24,)),
                "static 6-12-24-24": (6, 12, (24, 24)),
            }.items():
                torch.manual_seed(seed)
                net = static_network(*shape)
                seconds = train(net, x, y, arguments.epochs, lambda a, b, net=net: F.cross_entropy(net(a), b), seed)
                path = Path(folder) / "static.onnx"
                torch.onnx.export(net, (images[:2],), path, dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False)
                note(name, seed, seconds, path)
            for strength in (1.0, 3.0):
                torch.manual_seed(seed)
                gated = static_network(6, 12, (24, 24), gated=True)
                penalty = PaperPenalty(gated, [strength], len(y))
                seconds = train(
                    gated, x, y, arguments.epochs, lambda a, b, n=gated, p=penalty: F.cross_entropy(n(a), b) + p(), seed
                )
                path = Path(folder) / "compact.onnx"
                convert(gated, path, example_inputs=(images[:2],))
                note(f"static 6-12-24-24, L0 gates {strength:g}, compact", seed, seconds, path)
            torch.manual_seed(seed)
            net = conditional_network(6, 12, (24, 24))

            def both(a: Tensor, b: Tensor, net: nn.Sequential = net) -> Tensor:
                leave = net[2]
                assert isinstance(leave, ConfidenceExit)
                early, late = leave.both(net[:2](a))
                return F.cross_entropy(late, b) + 0.5 * F.cross_entropy(early, b)

            seconds = train(net, x, y, arguments.epochs, both, seed)
            for allowed in (0.0, 0.001, 0.002):
                threshold = choose_threshold(net, held_x, held_y, allowed)
                net[2].threshold.fill_(threshold)
                path = Path(folder) / "conditional.onnx"
                convert(net, path, example_inputs=(images[:2],))
                found = note(f"conditional, threshold {threshold:g}", seed, seconds, path)
                if allowed == 0.001 and seed == 0:
                    _write_pictures(arrays["test_images"], np.array(found["spent"]))
    result = {
        "epochs": arguments.epochs,
        "training_images": arguments.images,
        "rows": rows,
        "machine": describe_machine(),
    }
    (HERE / "trained.json").write_text(json.dumps(result, indent=1) + "\n")


def _write_pictures(images: np.ndarray, spent: np.ndarray) -> None:
    """The first digits that left early, and the first that did not."""
    for name, cost in (("easy", spent.min()), ("hard", spent.max())):
        chosen = np.flatnonzero(spent == cost)[:20]
        write_png(HERE / f"{name}.png", contact_sheet(images[chosen]))
        print(f"{name}.png: {cost:,} MACs each; {np.mean(spent == cost):.1%} of the test images")


if __name__ == "__main__":
    main()
