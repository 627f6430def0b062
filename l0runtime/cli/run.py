"""`l0runtime run`: run an ONNX file on arrays from .npz or .npy files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l0runtime.errors import InputError, OptionError

if TYPE_CHECKING:
    import numpy as np

    from l0runtime.session import Session


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="[NAME=]FILE",
    help="An .npz file with one array per input, or an .npy file; repeat with NAME= for several inputs.",
)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The .npz file to write.")
@click.option("--device", default="cuda", show_default=True, help="cuda, cuda:1, tensorrt or cpu; never falls back.")
@click.option("--threads", type=int, help="Threads inside an operator; onnxruntime's choice by default.")
@click.option("--allow-cpu-nodes", is_flag=True, help="Accept that part of a GPU model runs on the CPU.")
@click.option("--spent", is_flag=True, help="Also say which blocks of a conditional model ran, and for what work.")
def command(
    model: Path,
    inputs: tuple[str, ...],
    output: Path,
    device: str,
    threads: int | None,
    allow_cpu_nodes: bool,
    spent: bool,
) -> None:
    """Run MODEL on arrays and write its outputs, by name, to an .npz file.

    Exit codes: 0 done, 1 refused, 2 wrong usage. Nothing is written on an error.
    """
    if output.suffix != ".npz":
        raise OptionError(f"--output {output}: expected a name that ends in .npz.")
    from l0runtime.session import load

    with load(model, device=device, threads=threads, allow_cpu_nodes=allow_cpu_nodes, count_blocks=spent) as session:
        results = session.run(_read_inputs(inputs, session))
    _write(output, results)
    for name, array in results.items():
        click.echo(f"{name}: {array.dtype} {list(array.shape)}")
    if spent:
        from l0runtime.conditional.counting import CountingSession

        assert isinstance(session, CountingSession)
        click.echo(str(session.executions))


def _read_inputs(texts: tuple[str, ...], session: Session) -> dict[str, Any]:
    """Arrays by input name; an .npy file without a name belongs to the only input."""
    feed: dict[str, Any] = {}
    for text in texts:
        name, separator, file = text.partition("=")
        path = Path(file if separator else text)
        loaded = _read(path)
        if isinstance(loaded, dict):
            if separator:
                raise OptionError(f"--input {text}: an .npz file names its arrays itself; drop '{name}='.")
            found = loaded
        elif separator:
            found = {name: loaded}
        elif len(session.inputs) == 1:
            found = {session.inputs[0].name: loaded}
        else:
            names = ", ".join(spec.name for spec in session.inputs)
            raise OptionError(f"--input {text}: the model has several inputs ({names}); write NAME={text}.")
        for key, array in found.items():
            if key in feed:
                raise OptionError(f"--input {text}: input '{key}' is given twice.")
            feed[key] = array
    return feed


def _read(path: Path) -> np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]]:
    import numpy as np

    if not path.is_file():
        raise InputError(f"{path}: no such file. Give an .npy or .npz file.")
    try:
        # allow_pickle stays off: a pickle could run any code
        loaded = np.load(path, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as an .npy or .npz file ({error}).") from error


def _write(path: Path, arrays: dict[str, Any]) -> None:
    """Write under another name first, so that no half-written file is ever seen."""
    import numpy as np

    try:
        handle, temporary = tempfile.mkstemp(suffix=".npz", dir=path.parent)
    except OSError as error:
        raise OptionError(f"--output {path}: cannot be written ({error.strerror}).") from error
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
