"""`l0runtime bench`: is one model faster than another? The exit code is the verdict."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from l0runtime.errors import OptionError


@click.command()
@click.argument("compact", type=click.Path(path_type=Path))
@click.option("--against", required=True, type=click.Path(path_type=Path), help="The model it was made from.")
@click.option("--batch", default="1", show_default=True, help="Batch sizes, such as 1,8,32.")
@click.option("--margin", default="1%", show_default=True, help="Differences of up to this count as none.")
@click.option("--device", default="cuda", show_default=True, help="cuda, cuda:1, tensorrt or cpu; never falls back.")
@click.option("--threads", default=1, show_default=True, help="Threads inside an operator, for both models.")
@click.option("--shape", "shapes", multiple=True, metavar="NAME=AxBxC", help="The whole shape of an input.")
@click.option("--dim", "dims", multiple=True, metavar="NAME=N", help="The size of a dynamic dimension.")
@click.option("--bound", "bounds", multiple=True, metavar="NAME=N", help="Integers of an input lie below N.")
@click.option("--seconds", default=1.7, show_default=True, help="About how long to time each batch size.")
@click.option("--seed", default=0, show_default=True, help="Of inputs and run order.")
@click.option("--profile", is_flag=True, help="Also compare node by node and say what limits the gain.")
@click.option("--footprint/--no-footprint", default=True, help="Measure cold start and peak memory.")
@click.option(
    "--rates", metavar="0,25,50,...", help="Cost of a conditional model against the rate at which blocks run."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON with raw samples and run order.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Write one row per batch size and model.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="Write a .png, .svg or .pdf.")
def command(
    compact: Path,
    against: Path,
    batch: str,
    margin: str,
    device: str,
    threads: int,
    shapes: tuple[str, ...],
    dims: tuple[str, ...],
    bounds: tuple[str, ...],
    seconds: float,
    seed: int,
    profile: bool,
    footprint: bool,
    rates: str | None,
    as_json: bool,
    csv_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Say whether COMPACT is faster than the model given with --against.

    Both must compute the same; that is checked first. Exit codes: 0 FASTER, 1 NOT FASTER or
    refused (the models differ, a file or device is missing), 2 INCONCLUSIVE or wrong usage.
    """
    arguments = {
        "batch": parse_batches(batch),
        "margin": parse_margin(margin),
        "shapes": {name: _sizes(text, value) for text, name, value in _pairs("--shape", shapes)},
        "dims": {name: _size(text, value) for text, name, value in _pairs("--dim", dims)},
        "bounds": {name: _size(text, value) for text, name, value in _pairs("--bound", bounds)},
    }
    from l0runtime.measurement.plotting import check_plot

    if plot_path is not None:
        check_plot(plot_path)
    if csv_path is not None and not csv_path.parent.is_dir():
        raise OptionError(f"--csv {csv_path}: there is no folder {csv_path.parent}. Create it first.")
    if rates is not None:
        from l0runtime.cli.rates import parse_rates, plot_rates, print_rates, rates_as_csv
        from l0runtime.conditional.sweep import sweep_rates as measure_rates

        if profile:
            raise OptionError("--profile with --rates: nodes are not profiled at driven rates. Leave one out.")
        measured = measure_rates(
            compact,
            against,
            rates=parse_rates(rates),
            batches=arguments["batch"],  # type: ignore[arg-type]
            device=device,
            threads=threads,
            seconds=seconds,
            seed=seed,
            shapes=arguments["shapes"],  # type: ignore[arg-type]
            dims=arguments["dims"],  # type: ignore[arg-type]
            progress=lambda line: click.echo(line, err=True),
        )
        if plot_path is not None:
            plot_rates(measured, plot_path)
        if csv_path is not None:
            csv_path.write_text(rates_as_csv(measured))
        print_rates(measured, as_json=as_json)
        return
    from l0runtime.measurement import bench
    from l0runtime.measurement.plotting import plot_report
    from l0runtime.measurement.rendering import print_report

    report = bench(
        compact,
        against,
        device=device,
        threads=threads,
        budget_seconds=seconds,
        seed=seed,
        profile=profile,
        footprint=footprint,
        progress=lambda line: click.echo(line, err=True),
        **arguments,  # type: ignore[arg-type]
    )
    if plot_path is not None:
        plot_report(report, plot_path)
    if csv_path is not None:
        csv_path.write_text(report.to_csv())
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=1))
    else:
        from rich.console import Console

        # where no terminal tells its width, rich would take 80 columns and break the tables
        console = Console()
        print_report(report, console if console.is_terminal else Console(width=120))
        for result in report.results:
            click.echo(result.reason)
    sys.exit(report.verdict.exit_code)


def parse_batches(text: str) -> list[int]:
    """`1,8,32` -> [1, 8, 32].

    Raises:
        OptionError: anything but positive numbers.
    """
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise OptionError(f"--batch {text}: expected sizes of at least 1, such as 1,8,32.")
    return [int(part) for part in parts]


def parse_margin(text: str) -> float:
    """`2%` or `0.02` -> 0.02.

    Raises:
        OptionError: no number, or not from 0 to below 100 %.
    """
    try:
        margin = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        margin = -1.0
    if not 0 <= margin < 1:
        raise OptionError(f"--margin {text}: expected a fraction such as 2% or 0.02.")
    return margin


def _pairs(option: str, texts: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """(the option as given, name, value) for each NAME=VALUE."""
    pairs = []
    for text in texts:
        name, separator, value = text.rpartition("=")
        if not separator or not name:
            raise OptionError(f"{option} {text}: expected NAME=VALUE.")
        pairs.append((f"{option} {text}", name, value))
    return pairs


def _sizes(text: str, value: str) -> list[int]:
    return [_size(text, part) for part in value.split("x")]


def _size(text: str, value: str) -> int:
    if not value.isdigit():
        raise OptionError(f"{text}: '{value}' is no whole number.")
    return int(value)
