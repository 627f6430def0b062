"""`l0runtime convert`: a gated checkpoint or ONNX file in, a compact, verified ONNX file out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l0runtime.errors import InputError, ModelFileError, OptionError

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console


class _ListsFormats(click.Command):
    """Says at the end of its help which formats there are, those of installed packages included."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from converters.sources import available_sources

        with formatter.section("Formats (recognised by content)"):
            formatter.write_dl([(source.name, source.description) for source in available_sources().values()])


@click.command(cls=_ListsFormats)
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The ONNX file to write.")
@click.option("--model", metavar="PACKAGE.MODULE:FACTORY", help="Builds the architecture for bare parameters.")
@click.option("--format", "format_name", metavar="NAME", help="Source format, where more than one fits.")
@click.option(
    "--input",
    "shapes",
    multiple=True,
    metavar="SHAPE[:DTYPE]",
    help="Shape of one example input, batch first, such as 1x3x32x32 or 1x128:int64; repeat for more inputs.",
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="An option of the source format.")
@click.option(
    "--verify-on",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="A batch to verify on, arrays by input name; repeat for more. Default: random inputs.",
)
@click.option("--exact/--no-exact", default=None, help="Verify in float64 too. Default: for small models.")
@click.option("--static", is_flag=True, help="Fix every input size, the batch too, at the example's.")
@click.option("--opset", type=int, help="ONNX opset version of the export.")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE.json", help="Also write the report as JSON.")
@click.option(
    "--gated",
    "gated_output",
    type=click.Path(path_type=Path),
    metavar="FILE.onnx",
    help="Also write the exported gated model, to measure against.",
)
@click.option("--align", default="none", show_default=True, metavar="auto|none|N", help="Pad widths, see below.")
@click.option(
    "--align-device",
    default="cpu",
    show_default=True,
    help="Where --align auto and --measure time; never falls back.",
)
@click.option("--align-threads", default=1, show_default=True, help="Threads inside an operator, there.")
@click.option("--align-batch", default=1, show_default=True, help="Batch size, for --align auto.")
@click.option(
    "--measure", is_flag=True, help="Time blocks that run for some inputs only; keep what does not pay plain."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    source: Path,
    output: Path,
    model: str | None,
    format_name: str | None,
    shapes: tuple[str, ...],
    settings: tuple[str, ...],
    verify_on: tuple[Path, ...],
    exact: bool | None,
    static: bool,
    opset: int | None,
    report: Path | None,
    gated_output: Path | None,
    align: str,
    align_device: str,
    align_threads: int,
    align_batch: int,
    measure: bool,
    as_json: bool,
) -> None:
    """Turn a gated checkpoint or ONNX file into a compact, verified ONNX file.

    SOURCE is a file, or a folder where a format is one; a file of parameters alone needs --model, a factory that is
    called without arguments and returns the network as it was before pruning.

    Kernels work on blocks of channels, so that 63 can be slower than 64. --align pads with the model's own dead
    channels, which is exact: N to the next multiple of N, auto to the widths that measure fastest on the device that
    will run the model, and only if the model as a whole gets faster.
    """
    from converters import convert
    from converters.alignment import Target, check_align
    from converters.example_inputs import parse_inputs

    result = convert(
        source,
        output,
        model=model,
        example_inputs=parse_inputs(shapes) if shapes else None,
        format=format_name,
        options=parse_settings(settings),
        inputs=[_read_batch(path) for path in verify_on] or None,
        dynamic_shapes={} if static else None,
        opset=opset,
        exact=exact,
        report=report,
        gated_output=gated_output,
        align=check_align(align),
        align_for=Target(align_device, align_threads, align_batch),
        measure=measure,
        progress=lambda stage: click.echo(f"{stage} ...", err=True),
    )
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=1))
    else:
        make_console().print(result.render())


def parse_settings(texts: tuple[str, ...]) -> dict[str, str]:
    """`KEY=VALUE` arguments as a dict.

    Raises:
        OptionError: one without "=".
    """
    pairs: dict[str, str] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise OptionError(f"--set {text}: expected KEY=VALUE.")
        pairs[key] = value
    return pairs


def make_console() -> Console:
    """Writes tables to stdout: as wide as the terminal, 120 columns into a pipe."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=120)


def _read_batch(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    import numpy as np

    if not path.is_file():
        raise ModelFileError(f"{path}: no such file. Expected an .npz file with one array per input of the model.")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError) as error:  # AttributeError: a single .npy array
        raise InputError(f"{path}: not an .npz file of arrays by input name ({error}).") from error
