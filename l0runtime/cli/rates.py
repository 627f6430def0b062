"""`l0runtime bench --rates`: what does a conditional model cost at each execution rate, beside the masked one?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from l0runtime.errors import OptionError


def print_rates(
    conditional: Path,
    against: Path,
    rates: str,
    batches: Sequence[int],
    device: str,
    threads: int,
    seconds: float,
    seed: int,
    as_json: bool,
    sizes: Mapping[str, Any],
) -> None:
    """Measure and print one line per batch size and rate."""
    from l0runtime.conditional.sweep import sweep_rates

    points = sweep_rates(
        conditional,
        against,
        rates=parse_rates(rates),
        batches=batches,
        device=device,
        threads=threads,
        seconds=seconds,
        seed=seed,
        progress=lambda line: click.echo(line, err=True),
        **sizes,
    )
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
