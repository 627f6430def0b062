"""What do easy and hard digits look like, and what does error cost in multiply-accumulates?

    python -m benchmarks.conditional.pictures --data path/to/mnist

Reads trained.json; writes digits.png (the first test digits that left early, and the first that did not, with what each
cost) and trained.png (error against average work). Needs matplotlib (`pip install 'l0runtime[plot]'`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.conditional.trained import RESULT
from benchmarks.paper.idx import load_mnist

HERE = Path(__file__).parent
SHOWN = 10  # digits of a row
MARKS = {"static": "o", "compact": "s", "conditional": "^"}


def draw_digits(images: np.ndarray, labels: np.ndarray, spent: np.ndarray) -> Figure:
    """Two rows: cheap and expensive digits; the label under each."""
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    rows = figure.subfigures(2, 1)
    for row, kind, cost in ((rows[0], "easy", spent.min()), (rows[1], "hard", spent.max())):
        chosen = np.flatnonzero(spent == cost)
        row.suptitle(
            f"{kind}: {cost:,} multiply-accumulates each; {len(chosen) / len(spent):.1%} of the test digits", fontsize=9
        )
        for place, number in zip(row.subplots(1, SHOWN), chosen[:SHOWN], strict=False):
            place.imshow(images[number], cmap="gray_r", interpolation="nearest")
            place.set_xticks([])
            place.set_yticks([])
            place.set_xlabel(str(labels[number]), fontsize=8)
    return figure


def draw_errors(rows: list[dict[str, Any]]) -> Figure:
    """Error against average work, a point for each network and seed."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    panel = figure.add_subplot()
    for kind, mark in MARKS.items():
        points = [(row["macs"], 100 * row["error"], row["network"]) for row in rows if row["kind"] == kind]
        panel.scatter([point[0] for point in points], [point[1] for point in points], marker=mark, label=kind)
        for macs, error, name in points:
            short = name.removesuffix(" allowed").replace("8-16-32-32, L0 gates, ", "L0 ")
            panel.annotate(short, (macs, error), fontsize=6, xytext=(4, 3), textcoords="offset points")
    panel.set_xscale("log")
    panel.margins(x=0.15, y=0.1)
    panel.set_xlabel("multiply-accumulates per image, on average")
    panel.set_ylabel("error on 10,000 test images (%)")
    panel.legend()
    return figure


def comparison(rows: list[dict[str, Any]]) -> list[str]:
    """For each conditional network the cheapest static or compact one that errs no more, as a Markdown table."""
    head = [
        "conditional network",
        "error %",
        "MACs",
        "cheapest other that errs no more",
        "its error %",
        "its MACs",
        "ratio",
    ]
    lines = [head, ["---"] * len(head)]
    for row in (row for row in rows if row["kind"] == "conditional"):
        others = [other for other in rows if other["kind"] != "conditional" and other["seed"] == row["seed"]]
        good = [other for other in others if other["error"] <= row["error"]]
        figures = [row["network"], f"{100 * row['error']:.2f}", f"{row['macs']:,.0f}"]
        if good:
            best = min(good, key=lambda other: other["macs"])
            figures += [best["network"], f"{100 * best['error']:.2f}", f"{best['macs']:,.0f}"]
            figures.append(f"{best['macs'] / row['macs']:.2f}")
        else:
            figures += ["none", "", "", ""]
        lines.append(figures)
    return [f"| {' | '.join(line)} |" for line in lines]


def main() -> None:
    """Draw, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST's four IDX files")
    arguments = parser.parse_args()
    result, arrays = json.loads(RESULT.read_text()), load_mnist(arguments.data)
    spent = np.array(result["spent"])
    draw_digits(arrays["test_images"], arrays["test_labels"], spent).savefig(HERE / "digits.png", dpi=90)
    draw_errors(result["rows"]).savefig(HERE / "trained.png", dpi=90)
    print(*comparison(result["rows"]), sep="\n")


if __name__ == "__main__":
    main()
