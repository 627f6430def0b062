"""`l0runtime bench --rates`: what does a conditional model cost at each execution rate, beside the masked one?"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from l0runtime.errors import OptionError

if TYPE_CHECKING:
    from l0runtime.conditional.sweep import RatePoint


def print_rates(points: Sequence[RatePoint], *, as_json: bool) -> None:
    """One line per batch size and rate."""
    if as_json:
        click.echo(json.dumps([point.to_json() for point in points], indent=1))
        return
    from rich.table import Table

    from l0runtime.cli.convert import make_console

    table = Table("batch", "rate", title="time of a run, median", title_justify="left")
    for name in ("MACs per sample", "masked ms", "conditional ms", "of masked", "of the proportional line"):
        table.add_column(name, justify="right")
    for point in points:
        masked = point.masked_ms
        table.add_row(
            str(point.batch),
            f"{point.rate:.0%}",
            f"{point.macs:,.0f}",
            "" if masked is None else f"{masked:.3f}",
            f"{point.conditional_ms:.3f}",
            "" if masked is None else f"{point.conditional_ms / masked:.2f}",
            f"{point.over_line:.2f}",
        )
    make_console().print(table)


def rates_as_csv(points: Sequence[RatePoint]) -> str:
    """One row per batch size and rate, with a header."""
    rows = [point.to_json() for point in points]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def plot_rates(points: Sequence[RatePoint], path: Path) -> None:
    """Cost against rate, one panel per batch size: conditional, masked and the proportional line.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OptionError: the file name ends in no format known here.
    """
    from l0runtime.measurement.plotting import check_plot, save_figure

    check_plot(path)
    from matplotlib.figure import Figure

    batches = sorted({point.batch for point in points})
    figure = Figure(figsize=(6 * len(batches), 4), layout="constrained")
    for number, batch in enumerate(batches, start=1):
        panel = figure.add_subplot(1, len(batches), number)
        of_batch = [point for point in points if point.batch == batch]
        rates = [100 * point.rate for point in of_batch]
        panel.plot(rates, [point.line_ms for point in of_batch], "--", color="grey", label="proportional line")
        masked = [point.masked_ms for point in of_batch if point.masked_ms is not None]
        if len(masked) == len(of_batch):
            panel.plot(rates, masked, label="masked")
        panel.plot(rates, [point.conditional_ms for point in of_batch], marker="o", label="conditional")
        panel.set_xlabel("share of the samples that each block runs for (%)")
        panel.set_ylabel("median time of a run (ms)")
        panel.set_ylim(bottom=0)
        panel.set_title(f"batch {batch}")
        panel.legend()
    save_figure(figure, path)


def parse_rates(text: str) -> list[float]:
    """`0,25,50` (per cent) -> [0, 0.25, 0.5].

    Raises:
        OptionError: anything but numbers from 0 to 100.
    """
    try:
        rates = [float(part.strip().removesuffix("%")) / 100 for part in text.split(",")]
    except ValueError:
        rates = [-1.0]
    if not all(0 <= rate <= 1 for rate in rates):
        raise OptionError(f"--rates {text}: expected per cent from 0 to 100, such as 0,25,50,75,100.")
    return rates
