"""How do the trained networks, made compact, compare with the paper's: kept units, error, cost, measured speed?

    python benchmarks/paper/report.py --data MNIST_DIR RUN [RUN ...]

Each RUN is a folder that train.py filled. For each, its model.safetensors is converted (which verifies it), the compact
ONNX is run on MNIST's test images, and its speed is measured against the gated network as ONNX. Writes one file per
run to results/, the conversion's report included, and the table results/table.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from idx import load_mnist

import l0runtime
from converters import convert
from l0runtime.gates import load as load_gated

RESULTS = Path(__file__).parent / "results"
BATCHES = (1, 32)
# Louizos et al. 2018, table 1; keys are network and whether lambda is one for all layers
PAPER = {
    ("lenet-300-100", True): ("219-214-100", 1.4),
    ("lenet-300-100", False): ("266-88-33", 1.8),
    ("lenet-5", True): ("20-25-45-462", 0.9),
    ("lenet-5", False): ("9-18-65-25", 1.0),
}


def export_gated(model: torch.nn.Module, path: Path) -> None:
    """The gated network as ONNX, as a user would export it without this project: the yardstick of the speed-up."""
    example = torch.zeros(2, 1, 28, 28)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the exporter's own
        program = torch.onnx.export(
            model, (example,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
        )
    assert program is not None
    program.save(str(path))


def error_percent(model: Path, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    """Share of the test images that the ONNX model classifies wrongly, in %."""
    session = l0runtime.load(model, device="cpu", threads=1)
    wrong = sum(
        int((np.asarray(session(images[start : start + 1000])).argmax(1) != labels[start : start + 1000]).sum())
        for start in range(0, len(labels), 1000)
    )
    return 100 * wrong / len(labels)


def examine(run: Path, mnist: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """All figures of one run."""
    training = json.loads((run / "result.json").read_text(encoding="utf-8"))
    images = mnist["test_images"][:, None].astype(np.float32) / 255
    with tempfile.TemporaryDirectory() as folder:
        gated, compact = Path(folder) / "gated.onnx", Path(folder) / "compact.onnx"
        report = convert(run / "model.safetensors", compact, example_inputs=(torch.zeros(2, 1, 28, 28),))
        export_gated(load_gated(run / "model.safetensors"), gated)
        speed = l0runtime.bench(compact, gated, batch=BATCHES, device="cpu", threads=1, footprint=False)
        errors = {"gated": error_percent(gated, images, mnist["test_labels"])}
        errors["compact"] = error_percent(compact, images, mnist["test_labels"])
    measured = speed.to_dict()
    for result in measured["results"]:
        del result["measurement"]  # raw samples: megabytes
    return {
        "name": run.name,
        "training": training,
        "onnx_test_error_percent": errors,
        "conversion": report.to_json(),
        "speed": measured,
    }


def table_of(results: list[dict[str, Any]]) -> str:
    """The results beside the paper's rows, as Markdown."""
    lines = [
        "| network | lambda N | kept units | paper | error % | paper | parameters | FLOPs | "
        + " | ".join(f"speed-up, batch {batch}" for batch in BATCHES)
        + " |",
        "|" + "---|" * (8 + len(BATCHES)),
    ]
    for result in results:
        training, conversion = result["training"], result["conversion"]
        lambdas = training["lambdas_times_n"]
        is_uniform = len(set(lambdas)) == 1
        paper_kept, paper_error = PAPER[training["network"], is_uniform]
        after = conversion["after"]
        cells = [
            training["network"],
            f"{lambdas[0]:g}" if is_uniform else ", ".join(f"{value:g}" for value in lambdas),
            "-".join(str(kept) for kept in training["kept_units"]),
            paper_kept,
            f"{result['onnx_test_error_percent']['compact']:.2f}",
            f"{paper_error:.1f}",
            f"{after['parameters']:,} of {training['parameters_dense']:,}",
            f"{2 * after['macs']:,} of {training['flops_dense']:,}",
        ]
        for measured in result["speed"]["results"]:
            s = measured["speed_up"]
            cells.append(f"{s['estimate']:.2f} [{s['low']:.2f}, {s['high']:.2f}]")
        lines.append("| " + " | ".join(cells) + " |")
    machine = results[0]["speed"]["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines += [
        "",
        "Error: of the compact ONNX on MNIST's 10,000 test images. Parameters and FLOPs: counted in the compact ONNX, "
        "beside the network's without gates. Speed-up: time of the gated ONNX over that of the compact one, with its "
        "95 % interval, one thread of onnxruntime.",
        "",
        f"Measured on {machine['processor']}, {machine['usable_cores']} cores, Python {machine['python']}, {versions}.",
        "Repeat: `python benchmarks/paper/report.py --data DIR RUN ...`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the four IDX files, gzipped or not")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders that train.py filled")
    arguments = parser.parse_args()
    mnist = load_mnist(arguments.data)
    RESULTS.mkdir(exist_ok=True)
    results = []
    for run in arguments.runs:
        results.append(examine(run, mnist))
        # folders are this machine's business, the files' names are enough
        text = json.dumps(results[-1], indent=1).replace(f"{run}/", f"{run.name}/")
        _write(RESULTS / f"{run.name}.json", re.sub(r'"[^"]*/((?:gated|compact)\.onnx)"', r'"\1"', text) + "\n")
    table = table_of(results)
    _write(RESULTS / "table.md", table)
    print(table)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    main()
