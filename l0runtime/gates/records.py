"""What is noted after each epoch of a training, and how is it kept as a table and as a picture?"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from l0runtime.errors import MissingDependencyError, OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PICTURES = (".pdf", ".png", ".svg")
_NAMED_LINES = 12  # more gate vectors than these get no legend


@dataclass(frozen=True)
class EpochRecord:
    """Figures of one epoch, a line of the CSV.

    Args:
        epoch: 1 for the first.
        seconds: wall-clock time of the epoch, without evaluation.
        loss: mean cross entropy over the epoch's examples, in nats.
        penalty: mean penalty over the epoch's steps.
        expected_l0: expected number of gated parameters that are not zero, of the evaluated model.
        kept: units that the evaluation rule keeps, layer by layer, "20-25-45-462", of the evaluated model.
        test_error: fraction of wrongly classified test examples, None when not evaluated after this epoch.
        expected_cost, kept_cost: cost as a fraction of the ungated network's, under the training distribution and by
            the evaluation rule: the cost that a TargetCost is about, multiply-accumulates for other objectives; None
            where no trace of the model tells.
    """

    epoch: int
    seconds: float
    loss: float
    penalty: float
    expected_l0: float
    kept: str
    test_error: float | None
    expected_cost: float | None = None
    kept_cost: float | None = None


def write_records(records: Sequence[EpochRecord], path: str | os.PathLike[str]) -> None:
    """Write the epochs' figures as CSV, one column per field of EpochRecord; atomically."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(EpochRecord)])
            writer.writeheader()
            writer.writerows(asdict(record) for record in records)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def plot_records(
    records: Sequence[EpochRecord],
    path: str | os.PathLike[str],
    *,
    target: float | None = None,
    names: Sequence[str] = (),
) -> None:
    """Draw loss and test error, expected and kept cost, and kept units over the epochs; atomically.

    Args:
        records: of a run, at least one.
        path: picture to write: *.png, *.svg or *.pdf.
        target: drawn as a line among the costs, a fraction.
        names: of the gate vectors, as `gates_of` gives them.
    Raises:
        MissingDependencyError: matplotlib is not installed.
        OptionError: no records, another kind of file, or another number of names than of gate vectors.
    """
    place = Path(path)
    kept = [[int(units) for units in record.kept.split("-") if units] for record in records]
    if not kept:
        raise OptionError(f"plot_records {place}: no records; train for an epoch first.")
    if place.suffix not in _PICTURES:
        raise OptionError(f"plot_records {place}: expected a name that ends in .png, .svg or .pdf.")
    if names and len(names) != len(kept[0]):
        raise OptionError(f"plot_records {place}: {len(names)} names for {len(kept[0])} gate vectors.")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "a plot needs matplotlib, which is not installed. Run: pip install 'l0runtime[plot]'"
        ) from error

    figure = Figure(figsize=(15, 4), layout="constrained")
    losses, costs, units = figure.subplots(1, 3)
    epochs = [record.epoch for record in records]
    _draw_losses(losses, records)
    for label, values in (
        ("expected", [record.expected_cost for record in records]),
        ("kept by the evaluation rule", [record.kept_cost for record in records]),
    ):
        if any(value is not None for value in values):
            costs.plot(epochs, [None if value is None else 100 * value for value in values], label=label)
    if target is not None:
        costs.axhline(100 * target, color="black", linestyle=":", label="target")
    costs.set_ylabel("cost (% of the ungated network)")
    costs.set_ylim(bottom=0)
    if costs.lines:
        costs.legend()
    for position, line in enumerate(zip(*kept, strict=True)):
        units.plot(epochs, line, label=names[position] if names else f"gates {position + 1}")
    units.set_ylabel("kept units")
    units.set_ylim(bottom=0)
    if 0 < len(kept[0]) <= _NAMED_LINES:
        units.legend()
    for panel in (losses, costs, units):
        panel.set_xlabel("epoch")
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        figure.savefig(temporary, format=place.suffix[1:])
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def _draw_losses(panel: Axes, records: Sequence[EpochRecord]) -> None:
    epochs = [record.epoch for record in records]
    lines = panel.plot(epochs, [record.loss for record in records], label="loss")
    panel.set_ylabel("cross entropy (nats)")
    panel.set_yscale("log")
    tested = [(r.epoch, 100 * r.test_error) for r in records if r.test_error is not None]
    if tested:
        right = panel.twinx()
        lines += right.plot(*zip(*tested, strict=True), color="tab:red", marker=".", label="test error")
        right.set_ylabel("test error (%)")
        right.set_ylim(bottom=0)
    panel.legend(handles=lines)
