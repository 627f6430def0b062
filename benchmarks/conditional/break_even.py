"""How much work must a block be for its branch to pay?

    python -m benchmarks.conditional.break_even

Residual blocks of two 3x3 convolutions, and feed-forward layers of transformers, each in a network of its own with a
gate, are timed as the converter's `--measure` does: masked, skipped and run, at a batch of one, one thread; in a file
for a batch of one (a plain If) and in one for any batch. A branch pays where the mean of skipped and run lies below
masked: half of the samples skip. The break-even is where the gain crosses 1, interpolated over the logarithm of the
work; `BREAK_EVEN_MACS` in converters/conditional/describe.py is the larger of the two families', rounded up.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.conditional.single_block import feed_forward, residual
from converters.conditional.describe import BREAK_EVEN_MACS
from converters.conditional.measure import measure_blocks
from l0runtime.machine import describe_machine, load_average

RESULT = Path(__file__).with_name("break_even.json")
FORMS = {"single": "1", "samples": "N"}  # of a file for a batch of one, and for any batch


@dataclass(frozen=True)
class Case:
    """One network of one block."""

    form: str
    family: str
    size: str
    macs: int
    shape: tuple[int, ...]
    model: onnx.ModelProto


def cases() -> Iterator[Case]:
    """Both families in both forms, small blocks first."""
    for form, batch in FORMS.items():
        for width, size in ((4, 4), (4, 8), (8, 8), (8, 14), (16, 14), (16, 32), (32, 32), (64, 32)):
            macs, shape = 2 * size * size * 9 * width * width, (1, width, size, size)
            yield Case(form, "residual", f"{width} channels, {size}x{size}", macs, shape, residual(width, size, batch))
        for width, length in ((16, 4), (32, 8), (32, 16), (64, 16), (64, 64), (128, 64), (256, 64)):
            macs, shape = 8 * length * width**2, (1, length, width)
            model = feed_forward(width, length, batch)
            yield Case(form, "feed-forward", f"width {width}, length {length}", macs, shape, model)


def measure(device: str = "cpu", repeats: int = 5) -> list[dict[str, Any]]:
    """A row per case: the median of the repeats."""
    rows = []
    for case in cases():
        pays = []
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "masked.onnx"
                onnx.save(case.model, str(path))
                pays += measure_blocks(path, Path(folder), {"x": case.shape}, device=device)
        row: dict[str, Any] = {"form": case.form, "family": case.family, "size": case.size, "macs": case.macs}
        for name in ("masked", "skipped", "run"):
            row[f"{name}_us"] = 1e3 * float(np.median([getattr(pay, name) for pay in pays]))
        rows.append(row | {"gain": row["masked_us"] / ((row["skipped_us"] + row["run_us"]) / 2)})
    return rows


def break_even(rows: list[dict[str, Any]]) -> float:
    """MACs from which on all blocks of a family gain; 0 if all do, infinite if none."""
    below = [row for row in rows if row["gain"] <= 1]
    if not below:
        return 0.0
    last = max(below, key=lambda row: row["macs"])
    above = [row for row in rows if row["macs"] > last["macs"]]
    if not above:
        return math.inf
    first = min(above, key=lambda row: row["macs"])
    share = (1 - last["gain"]) / (first["gain"] - last["gain"])
    return float(last["macs"] * (first["macs"] / last["macs"]) ** share)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| form | block | MACs | masked us | skipped us | run us | gain, half skip |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = " | ".join(f"{row[name]:.1f}" for name in ("masked_us", "skipped_us", "run_us"))
        block = f"{row['family']}, {row['size']}"
        lines.append(f"| {row['form']} | {block} | {row['macs']:,} | {times} | {row['gain']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write break_even.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="as for l0runtime.load")
    arguments = parser.parse_args()
    rows = measure(arguments.device)
    found = {
        form: {
            family: break_even([row for row in rows if (row["form"], row["family"]) == (form, family)])
            for family in ("residual", "feed-forward")
        }
        for form in FORMS
    }
    result = {"device": arguments.device, "break_even_macs": found, "assumed": BREAK_EVEN_MACS, "rows": rows}
    result |= {"machine": describe_machine(), "load_average": load_average()}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))
    for form, families in found.items():
        print(*(f"{form}, {family}: pays from {macs:,.0f} MACs on" for family, macs in families.items()), sep="\n")


if __name__ == "__main__":
    main()
