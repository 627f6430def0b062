"""Does a conditional model give what the masked one gives, at every rate and batch size?

    python -m benchmarks.conditional.equality

Four networks, converted from torch: residual blocks whose gates are 0 or 1, and between 0 and 1; a transformer encoder
whose attention and feed-forward layers run for some sequences; and an early exit with gated blocks behind it. Their
gates are driven (l0runtime.conditional.forcing) so that each block runs for 0, 25, 50, 75 and 100 % of the samples of
batches of 1, 2, 7 and 32, in twenty choices each, so that every block meets empty, partial and full sub-batches. The
masked file, driven alike, is the judge. Differences are relative to the output's scale; some of the choices are
repeated in float64.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from converters import convert
from converters.compaction import compact
from converters.float64 import evaluate, upcast
from l0runtime.conditional import ConditionalModel
from l0runtime.conditional.forcing import force_gates
from l0runtime.conditional.metadata import conditional_blocks
from l0runtime.conditional.sweep import choose
from l0runtime.gates import ConditionalResNet
from l0runtime.gates.conditional import Conditional, ConditionalGate
from l0runtime.machine import describe_machine
from l0runtime.session import Session, load

RESULT = Path(__file__).with_name("equality.json")
RATES = (0.0, 0.25, 0.5, 0.75, 1.0)
BATCHES = (1, 2, 7, 32)
CHOICES = 20
LIMIT = 2e-6  # float32 sums of up to 300 terms in another order, epsilon * sqrt(terms)
LIMIT64 = 1e-14
_CHOICES64 = 1  # onnx.reference takes a second for each


class Attention(nn.Module):
    """Self-attention behind a norm, [batch, length, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        result: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return result


class Encoder(nn.Module):
    """Two layers of conditional attention and feed-forward, the mean, a linear layer."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()

        def feed_forward() -> nn.Sequential:
            return nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            )

        layers = [body for _ in range(2) for body in (Attention(width, heads), feed_forward())]
        self.layers = nn.Sequential(*(Conditional(body, ConditionalGate(width)) for body in layers))
        self.last = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.layers(x).mean(1))
        return logits


IMAGE = (3, 16, 16)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual blocks, gates 0 or 1": (lambda: ConditionalResNet(3, (16, 24), 2), IMAGE),
    "residual blocks, gates from 0 to 1": (lambda: ConditionalResNet(3, (16, 24), 2, kind="hard-concrete"), IMAGE),
    "attention and feed-forward": (Encoder, (12, 32)),
    "early exit, blocks behind it": (lambda: ConditionalResNet(3, (16, 24), 1, exits=(0,), gated=True), IMAGE),
}


def make(name: str, folder: Path) -> tuple[onnx.ModelProto, onnx.ModelProto, ConditionalModel]:
    """Masked and conditional, gates driven by inputs, and the blocks."""
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    net = build().eval()
    with torch.no_grad():
        for parameter in net.parameters():  # nothing is left at 0 or 1
            parameter.add_(0.1 * torch.randn_like(parameter))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        convert(
            net,
            folder / "conditional.onnx",
            example_inputs=(torch.randn(2, *shape),),
            gated_output=folder / "gated.onnx",
        )
    conditional = onnx.load(str(folder / "conditional.onnx"))
    masked = ir.to_proto(compact(ir.load(str(folder / "gated.onnx"))).model)
    blocks = conditional_blocks(conditional)
    assert blocks is not None
    return force_gates(masked, blocks), force_gates(conditional, blocks), blocks


def gates_of(blocks: ConditionalModel, rate: float, batch: int, number: int) -> dict[str, Any]:
    """Values for all gates; open ones that are no step lie between 0 and 1."""
    generator = np.random.default_rng(number)
    chosen = choose(blocks, rate, batch, number)
    for block in blocks.blocks:
        if not block.is_binary:
            name = f"forced:{block.gate}"
            chosen[name] = chosen[name] * generator.choice([0.25, 0.7, 1.0], batch).astype(np.float32)
    return chosen


def compare(
    name: str, masked: onnx.ModelProto, conditional: onnx.ModelProto, blocks: ConditionalModel
) -> list[dict[str, Any]]:
    """A row for each batch size and rate."""
    shape = NETWORKS[name][1]
    sessions = [load(proto.SerializeToString(), device="cpu", threads=1) for proto in (masked, conditional)]
    doubled = [_doubled(proto) for proto in (masked, conditional)]
    rows = []
    for batch in BATCHES:
        for rate in RATES:
            worst, same, worst64 = 0.0, 0, 0.0
            for number in range(CHOICES):
                x = np.random.default_rng([batch, number]).standard_normal((batch, *shape)).astype(np.float32)
                feed = {sessions[0].inputs[0].name: x} | gates_of(blocks, rate, batch, number)
                expected, found = (_run(session, feed) for session in sessions)
                worst = max(worst, float(np.abs(expected - found).max() / np.abs(expected).max()))
                same += np.array_equal(expected, found)
                if number < _CHOICES64 and batch <= 7:
                    exact, exact_found = (evaluate(proto, feed)[0] for proto in doubled)
                    worst64 = max(worst64, float(np.abs(exact - exact_found).max() / np.abs(exact).max()))
            rows.append({"network": name, "batch": batch, "rate": rate, "largest": worst, "identical": same})
            rows[-1] |= {"choices": CHOICES, "float64": worst64 if batch <= 7 else None}
    return rows


def control(name: str, masked: onnx.ModelProto, blocks: ConditionalModel) -> float:
    """Least difference that one wrong decision makes: each block in turn, for one sample of seven; masked model."""
    session = load(masked.SerializeToString(), device="cpu", threads=1)
    x = np.random.default_rng(0).standard_normal((7, *NETWORKS[name][1])).astype(np.float32)
    right = {session.inputs[0].name: x} | gates_of(blocks, 1.0, 7, 0)
    expected = _run(session, right)
    differences = []
    for block in blocks.blocks:
        wrong = right | {f"forced:{block.gate}": right[f"forced:{block.gate}"].copy()}
        wrong[f"forced:{block.gate}"][3] = 0 if block.runs_if_true else 1
        differences.append(float(np.abs(_run(session, wrong) - expected).max() / np.abs(expected).max()))
    return min(differences)


def _run(session: Session, feed: dict[str, Any]) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = next(iter(session.run(feed).values()))
    return found


def _doubled(proto: onnx.ModelProto) -> onnx.ModelProto:
    model = ir.from_proto(proto)
    upcast(model)
    return ir.to_proto(model)


def table(rows: list[dict[str, Any]]) -> str:
    """For each network and batch: the largest difference over all rates, and how many outputs were identical."""
    lines = ["| network | batch | 0 % | 25 % | 50 % | 75 % | 100 % | bit for bit | float64 |", "|---|" + "---|" * 8]
    for name in NETWORKS:
        for batch in BATCHES:
            chosen = [row for row in rows if (row["network"], row["batch"]) == (name, batch)]
            same, every = sum(row["identical"] for row in chosen), sum(row["choices"] for row in chosen)
            exact = [row["float64"] for row in chosen if row["float64"] is not None]
            figures = [_figure(row["largest"]) for row in chosen]
            figures += [f"{same} of {every}", _figure(max(exact)) if exact else ""]
            lines.append(f"| {name} | {batch} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _figure(number: float) -> str:
    return f"{number:.0e}" if number else "0"


def main() -> int:
    """Compare, print, write equality.json; exit code 1 where a difference is more than rounding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    rows: list[dict[str, Any]] = []
    controls: dict[str, float] = {}
    for name in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            masked, conditional, blocks = make(name, Path(folder))
        rows += compare(name, masked, conditional, blocks)
        controls[name] = control(name, masked, blocks)
    is_equal = all(row["largest"] <= LIMIT and (row["float64"] or 0.0) <= LIMIT64 for row in rows)
    can_fail = all(difference > 100 * LIMIT for difference in controls.values())
    result = {"limit": LIMIT, "limit_float64": LIMIT64, "equal": is_equal, "controls": controls, "rows": rows}
    result["machine"] = describe_machine()
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))
    print("one block of one sample decided otherwise changes the masked output by", controls)
    return 0 if is_equal and can_fail else 1


if __name__ == "__main__":
    sys.exit(main())
