"""`l0runtime demo`: the whole way on real data: train with gates, convert, verify, measure."""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from l0runtime.cli.convert import make_console
from l0runtime.errors import ModelFileError

if TYPE_CHECKING:
    from torch import Tensor

_BATCHES = (1, 32)


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the files in this folder: checkpoint, gated and compact ONNX, report.",
)
@click.option("--epochs", default=60, show_default=True, help="Passes over the 1437 training images.")
@click.option("--seed", default=0, show_default=True, help="Of the training.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(output: Path | None, epochs: int, seed: int, as_json: bool) -> None:
    """Train, convert, verify and measure a small gated network on scikit-learn's handwritten digits.

    Runs on the CPU and takes less than two minutes on two free cores. Exit code 1 if the compact
    network does not compute what the trained one does.
    """
    import torch

    from converters import convert
    from l0runtime.gates import progress_bar, save, train_digits
    from l0runtime.measurement import bench

    # so small a network trains as fast on one thread, and several wait for each other where a core is busy
    torch.set_num_threads(1)
    begin = time.perf_counter()
    with ExitStack() as stack:
        folder = _make_folder(output) if output is not None else _temporary_folder(stack)
        with progress_bar("training") as progress:
            run = train_digits(progress, epochs=epochs, seed=seed)
        paths = {name: folder / name for name in ("gated.safetensors", "gated.onnx", "compact.onnx", "report.json")}
        save(run.model, paths["gated.safetensors"])
        report = convert(
            paths["gated.safetensors"],
            paths["compact.onnx"],
            example_inputs=(run.test_inputs[:2],),
            report=paths["report.json"],
            gated_output=paths["gated.onnx"],
            progress=lambda stage: click.echo(f"{stage} ...", err=True),
        )
        errors = {
            name: _test_error(paths[name], run.test_inputs, run.test_labels) for name in ("gated.onnx", "compact.onnx")
        }
        measured = bench(
            paths["compact.onnx"],
            paths["gated.onnx"],
            batch=_BATCHES,
            dims=_sizes_of(paths["gated.onnx"], run.test_inputs),
            device="cpu",
            footprint=False,
            progress=lambda line: click.echo(line, err=True),
        )
    seconds = time.perf_counter() - begin
    if as_json:
        figures = {
            "test_error": {"torch": run.test_error, "gated": errors["gated.onnx"], "compact": errors["compact.onnx"]},
            "conversion": report.to_json(),
            "bench": measured.to_dict(),
            "seconds": seconds,
        }
        click.echo(json.dumps(figures, indent=1))
        return
    from l0runtime.measurement.rendering import print_report

    console = make_console()
    console.print(report.render())
    print_report(measured, console)
    for result in measured.results:
        click.echo(result.reason)
    click.echo(
        f"test error on {len(run.test_labels)} digits: gated in torch {run.test_error:.2%}, "
        f"gated in onnxruntime {errors['gated.onnx']:.2%}, compact in onnxruntime {errors['compact.onnx']:.2%}"
    )
    click.echo(f"{seconds:.0f} s in all" + (f"; files are in {output}" if output is not None else ""))


def _make_folder(output: Path) -> Path:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelFileError(f"{output}: the folder cannot be made ({error.strerror}).") from error
    return output


def _temporary_folder(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="l0runtime-demo-")))


def _sizes_of(path: Path, inputs: Tensor) -> dict[str, int]:
    """The images' sizes, by the names that an ONNX file gives to the axes that may vary besides the batch."""
    from l0runtime.sample_inputs import input_specs

    (spec,) = input_specs(path)
    return {dim: size for dim, size in zip(spec.shape[1:], inputs.shape[1:], strict=True) if isinstance(dim, str)}


def _test_error(path: Path, inputs: Tensor, labels: Tensor) -> float:
    """Fraction of the test images that an ONNX file classifies wrongly."""
    from l0runtime.session import load

    with load(path, device="cpu") as session:
        logits = session(inputs.numpy())
    return float((logits.argmax(axis=1) != labels.numpy()).mean())
