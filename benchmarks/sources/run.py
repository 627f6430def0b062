"""Every checkpoint format in one table: same outputs as the masked model, how much smaller, how much faster?

    python -m benchmarks.sources.run --work DIR [--amlab DIR --mnist DIR] --out benchmarks/sources/result.json
    python -m benchmarks.sources.run --work DIR --out benchmarks/sources/result.json --time
    python -m benchmarks.sources.run --out benchmarks/sources/result.json --table

The first makes (or takes) one file per format, computes the masked model's outputs in the original's own semantics, in
torch, and holds the compact ONNX that `convert` writes against them: at most 1e-5 of the outputs' scale. --amlab names
the folder of files that the paper's own code wrote; with --mnist DIR they also go through `l0runtime convert`, and the
test error of masked model and compact ONNX is counted. The second times gated against compact ONNX. Exit 1 when one
format misses the bar.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.paper.idx import load_mnist
from benchmarks.sources.library import recorded
from benchmarks.sources.made import Made
from benchmarks.sources.masked import (
    amlab,
    cofi,
    constrained_sparsity,
    convnet_aig,
    flop,
    l0_arm,
    llm_shearing,
    torch_formats,
)
from converters import convert
from l0runtime.machine import describe_machine
from l0runtime.measurement import compare_speed
from l0runtime.session import load

BAR = 1e-5
LIVE = "live nn.Module"

FORMATS: dict[str, Callable[[Path], Made]] = {
    **torch_formats.MAKERS,
    LIVE: torch_formats.make_own,
    "amlab (WideResNet)": amlab.make_wide_resnet,
    "l0-arm (LeNet-5)": l0_arm.make,
    "l0-arm (MLP)": partial(l0_arm.make, network="mlp"),
    "constrained-sparsity (LeNet-5)": constrained_sparsity.make,
    "constrained-sparsity (unstructured)": partial(constrained_sparsity.make, network="unstructured"),
    "constrained-sparsity (WRN, bn L0)": partial(constrained_sparsity.make, network="wrn-L0"),
    "constrained-sparsity (WRN, bn regular)": partial(constrained_sparsity.make, network="wrn-regular"),
    "flop": flop.make,
    "cofi": cofi.make,
    "llm-shearing": llm_shearing.make,
    "convnet-aig (small)": partial(convnet_aig.make, small=True),
    **recorded.MAKERS,
}
AMLAB = {"amlab (LeNet-5)": "lenet5.pth.tar", "amlab (MLP, average)": "mlp_300_100_ema.pth.tar"}


def convert_one(name: str, made: Made, folder: Path) -> dict[str, Any]:
    """Convert, and compare the compact file with the masked model on its inputs."""
    with torch.no_grad():
        expected = made.masked(*made.inputs).numpy()
    compact, gated = folder / "compact.onnx", folder / "gated.onnx"
    is_onnx = made.path.suffix == ".onnx"
    source = made.masked if name == LIVE else made.path
    arguments = {"example_inputs": made.inputs} if name == LIVE else dict(made.arguments)
    report = convert(source, compact, **({} if is_onnx else {"gated_output": gated}), **arguments)
    session = load(compact, device="cpu", threads=1)
    feed = {spec.name: tensor.numpy() for spec, tensor in zip(session.inputs, made.inputs, strict=True)}
    found = next(iter(session.run(feed).values()))
    np.savez(folder / "feed.npz", **feed)
    return {
        "format": report.format,
        "origin": made.origin,
        "relative_difference": float(np.abs(found - expected).max() / np.abs(expected).max()),
        "parameters": [report.before.parameters, report.after.parameters],
        "macs": [report.before.macs, report.after.macs],
        "file_bytes": [report.before.file_bytes, report.after.file_bytes],
        "baseline": made.path.name if is_onnx else gated.name,
        "notes": list(report.notes),
    }


def count_errors(made: Made, mnist: Mapping[str, Any], folder: Path) -> dict[str, int]:
    """Wrong test images of the masked model, and of what the command line makes of its file."""
    compact = folder / "by_command.onnx"
    command = ["l0runtime", "convert", str(made.path), "-o", str(compact)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    images = torch.from_numpy(mnist["test_images"].copy()).float() / 255
    images = images.unsqueeze(1) if made.inputs[0].dim() == 4 else images.flatten(1)
    session = load(compact, device="cpu", threads=1)
    name = session.inputs[0].name
    masked = found = 0
    for x, y in zip(images.split(500), np.split(mnist["test_labels"], len(images) // 500), strict=True):
        with torch.no_grad():
            masked += int((made.masked(x).argmax(1).numpy() != y).sum())
        logits = next(iter(session.run({name: x.numpy()}).values()))
        found += int((logits.argmax(1) != y).sum())
    return {"masked": masked, "compact": found}


def time_one(folder: Path, baseline: Path) -> dict[str, Any]:
    """Time of gated over compact on the example's inputs."""
    with np.load(folder / "feed.npz") as stored:
        feed = dict(stored)
    speed = compare_speed(folder / "compact.onnx", baseline, feed, device="cpu", threads=1, budget_seconds=1.5)
    found = speed.speed_up
    return {"ratio": found.estimate, "low": found.low, "high": found.high, "batch": len(next(iter(feed.values())))}


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "| file | made by | difference | parameters | multiply-adds | speed-up (batch) |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in result["formats"].items():
        before, after = row["parameters"]
        macs = row["macs"]
        speed = row.get("speed_up")
        timed = (
            ""
            if speed is None
            else f"{speed['ratio']:.2f} [{speed['low']:.2f}, {speed['high']:.2f}] ({speed['batch']})"
        )
        lines.append(
            f"| {name} | {row['origin']} | {row['relative_difference']:.1e} | {after:,} of {before:,} | "
            f"{100 * macs[1] / max(macs[0], 1):.0f} % | {timed} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for the files made and converted")
    parser.add_argument("--amlab", type=Path, help="folder with lenet5.pth.tar and mlp_300_100_ema.pth.tar")
    parser.add_argument("--mnist", type=Path, help="folder with MNIST's IDX files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help="formats whose name contains this")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    result = json.loads(options.out.read_text()) if options.out.exists() else {"bar": BAR, "formats": {}}
    if options.table:
        print(table(result))
        return
    if options.work is None:
        parser.error("--work is needed to convert and to time")
    makers = dict(FORMATS)
    if options.amlab is not None:
        makers |= {name: lambda _, file=file: amlab.read(options.amlab / file) for name, file in AMLAB.items()}
    mnist = None if options.mnist is None else load_mnist(options.mnist)
    torch.manual_seed(0)
    for name in result["formats"] if options.time else makers:
        if options.only is not None and options.only not in name:
            continue
        folder = options.work / "".join(c if c.isalnum() else "_" for c in name)
        folder.mkdir(parents=True, exist_ok=True)
        if options.time:
            row = result["formats"][name]
            row["speed_up"] = time_one(folder, folder / Path(row["baseline"]).name)
        else:
            made = makers[name](folder)
            row = result["formats"][name] = convert_one(name, made, folder)
            if mnist is not None and name in AMLAB:
                row["wrong_of_10000"] = count_errors(made, mnist, folder)
        print(f"{name}: {row}", file=sys.stderr, flush=True)
        result["machine"] = describe_machine()
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))
    missed = [name for name, row in result["formats"].items() if not row["relative_difference"] <= BAR]
    if missed:
        sys.exit(f"more than {BAR:g} of the outputs' scale apart: {', '.join(missed)}")


if __name__ == "__main__":
    main()
