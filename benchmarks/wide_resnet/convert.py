"""Is the paper's WRN-28-10, with half of its gates closed, converted exactly, and what does that cost?

    python -m benchmarks.wide_resnet.convert --result benchmarks/wide_resnet/result.json

Random weights, BatchNorm statistics measured on random images and then disturbed, half of the gates of every layer
closed. The gate stands before BatchNorm, so a closed channel is a constant that the zero-padded border of the next
convolution cuts off: logits and the last feature map are compared, its border pixels by themselves, at two sizes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.zoo.judge import _difference, _session, float64_difference, paired_latency
from benchmarks.zoo.randomise import randomise
from l0runtime.gates.layers import GatedConv2d
from l0runtime.gates.wide_resnet import WideResNet

_LIMIT_FLOAT32 = 1e-5  # of the output's scale: rounding of sums of up to 5760 terms through 28 layers
_LIMIT_FLOAT64 = 1e-10


class _WithFeatures(nn.Module):
    """Logits [batch, classes] and the last feature map [batch, 64 * widen, h / 4, w / 4]."""

    def __init__(self, model: WideResNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.relu(self.model.bn(self.model.blocks(self.model.conv1(image))))
        return self.model.fc(features.mean((2, 3))), features


@torch.no_grad()
def gated_network(depth: int, widen: int, seed: int) -> tuple[nn.Module, int, int]:
    """The network in evaluation mode, its number of gates and of closed gates."""
    torch.manual_seed(seed)
    model = WideResNet(depth, widen)
    gates = closed = 0
    for module in model.modules():
        if isinstance(module, GatedConv2d):
            log_alpha = next(p for n, p in module.named_parameters() if n.endswith("log_alpha"))
            # sigmoid(log_alpha) * 1.2 - 0.1: 0 below -2.398, between 0.22 and 1 from -1 on
            log_alpha.uniform_(-1.0, 3.0)
            order = torch.randperm(log_alpha.numel())[: log_alpha.numel() // 2]
            log_alpha.view(-1)[order] = -4.0
            gates += log_alpha.numel()
            closed += order.numel()
    wrapped = _WithFeatures(model)
    randomise_statistics(wrapped, seed)
    return wrapped, gates, closed


def randomise_statistics(model: nn.Module, seed: int) -> None:
    """As in the zoo; the gates' own parameters stay as they are."""
    kept = {n: p.detach().clone() for n, p in model.named_parameters() if n.endswith("log_alpha")}
    randomise(model, (torch.randn(4, 3, 32, 32),), seed)
    for name, parameter in model.named_parameters():
        if name in kept:
            parameter.data.copy_(kept[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--depth", type=int, default=28)
    parser.add_argument("--widen", type=int, default=10)
    parser.add_argument("--scratch")
    parser.add_argument("--static", action="store_true", help="fix height and width at 32 x 32 in the export")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        report = convert(options.depth, options.widen, options.static, Path(folder))
    temporary = options.result.with_suffix(".part")
    temporary.write_text(json.dumps(report, indent=2) + "\n")
    temporary.rename(options.result)
    print(json.dumps(report, indent=2))
    sys.exit(0 if report["exact"] else 1)


def convert(depth: int, widen: int, static: bool, folder: Path) -> dict[str, Any]:
    """Export, compact in a process of its own, compare at two sizes."""
    from benchmarks.zoo.macs import macs_of_run
    from l0runtime.measurement.cost import count_cost

    model, gates, closed = gated_network(depth, widen, seed=0)
    size = torch.export.Dim.DYNAMIC
    axes: dict[int, Any] = {0: torch.export.Dim("batch")} | ({} if static else {2: size, 3: size})
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, (torch.randn(2, 3, 32, 32),), dynamo=True, verbose=False, opset_version=20, dynamic_shapes=(axes,)
        )
    assert program is not None
    export_seconds = time.perf_counter() - started
    source, target = str(folder / "gated.onnx"), str(folder / "compact.onnx")
    program.save(source, external_data=True)
    del program
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.zoo.compact_once", source, target],
        capture_output=True,
        text=True,
        check=True,
    )
    report: dict[str, Any] = {
        "network": f"WRN-{depth}-{widen}",
        "gates": gates,
        "closed": closed,
        "height_and_width": "fixed" if static else "free",
        "export_seconds": round(export_seconds, 2),
    }
    report |= {k: v for k, v in json.loads(child.stdout.splitlines()[-1]).items() if k != "kept"}
    before, after = _session(source), _session(target)
    worst = 0.0
    report["float32"] = {}
    for height, width in ((32, 32),) if static else ((32, 32), (48, 40)):
        torch.manual_seed(height)
        image = torch.randn(3, 3, height, width)
        expected, found = (s.run(None, {s.get_inputs()[0].name: image.numpy()}) for s in (before, after))
        with torch.no_grad():
            reference = [t.numpy() for t in model(image)]
        border = np.zeros(expected[1].shape, bool)
        border[..., 0, :] = border[..., -1, :] = border[..., :, 0] = border[..., :, -1] = True
        scale = float(np.abs(expected[1]).max())
        gap = np.abs(expected[1] - found[1]) / scale
        figures = {
            "logits": _difference(expected[:1], found[:1]),
            "features_border": float(gap[border].max()),
            "features_inside": float(gap[~border].max()),
            "gated_onnx_to_torch": _difference(reference, expected),
        }
        report["float32"][f"{height}x{width}"] = figures
        worst = max(worst, figures["logits"], figures["features_border"], figures["features_inside"])
    small = (torch.randn(1, 3, 32, 32) if static else torch.randn(1, 3, 8, 8),)
    report["float64"] = {"size": "x".join(map(str, small[0].shape[2:])), **float64_difference(source, target, small)}
    wide = report["float64"]["difference_float64"]
    report["exact"] = worst <= _LIMIT_FLOAT32 and wide is not None and wide <= _LIMIT_FLOAT64
    probe = (torch.randn(1, 3, 32, 32),)
    feeds = {before.get_inputs()[0].name: probe[0].numpy()}
    shapes = {before.get_inputs()[0].name: (1, 3, 32, 32)}
    for name, path in (("gated", source), ("compact", target)):
        report[f"parameters_{name}"] = count_cost(path, shapes=shapes).parameters
        report[f"macs_{name}"] = macs_of_run(path, feeds)[0]
    report |= paired_latency(before, after, probe)
    return report


if __name__ == "__main__":
    main()
