"""How is a model written so that nobody ever sees half a file?

Everything is made in a hidden folder beside the output, on the same file system, and renamed into place at the end: the
external data first, so that a model in place is always complete. If anything fails, the folder goes and nothing else
was touched.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from l0runtime.errors import ModelFileError, OptionError

if TYPE_CHECKING:
    import onnx_ir as ir

    from converters.report import Report

# protobuf cannot hold 2 GiB; what is left is for the graph itself
_LARGEST_EMBEDDED_BYTES = 1_900_000_000
GATED = "gated.onnx"
_REPORT = "report.json"


@contextmanager
def staging_folder(output: Path, source: object = None) -> Iterator[Path]:
    """A hidden folder beside `output` that is gone when the block ends.

    Raises:
        OptionError: the output is a folder, or the source itself.
        ModelFileError: the folder of the output does not exist, or cannot be written to.
    """
    if output.is_dir():
        raise OptionError(f"{output}: is a directory; expected the path of the .onnx file to write.")
    if isinstance(source, str | Path) and Path(source).exists() and output.exists() and output.samefile(source):
        raise OptionError(f"{output}: is the source itself; expected another path for the compact model.")
    if not output.parent.is_dir():
        raise ModelFileError(f"{output}: the folder {output.parent} does not exist. Create it first.")
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise ModelFileError(f"{output}: the folder cannot be written to ({error.strerror}).") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save_model(model: ir.Model, path: Path) -> Path:
    """Write a model, and return its path; weights of more than protobuf can hold go to `<name>.data` beside it."""
    import onnx_ir as ir

    size = sum(
        value.const_value.nbytes
        for graph in [model.graph, *model.graph.subgraphs()]
        for value in graph.initializers.values()
        if value.const_value is not None
    )
    try:
        if size > _LARGEST_EMBEDDED_BYTES:
            ir.save(model, path, external_data=f"{path.name}.data")
        else:
            _embed_weights(model)
            ir.save(model, path)
    except OSError as error:
        raise ModelFileError(f"{path.name}: cannot be written ({error.strerror or error}).") from error
    return path


def replace_model(path: Path, other: Path) -> None:
    """Put another model of the same file name, with its data, in the place of one in a staging folder."""
    for name in (path.name, f"{path.name}.data"):
        (path.with_name(name)).unlink(missing_ok=True)
        if (other.parent / name).exists():
            (other.parent / name).replace(path.with_name(name))


def append_metadata(path: Path, entries: Mapping[str, str]) -> None:
    """Add metadata to an ONNX file without touching a byte of what was verified.

    Protobuf defines that concatenated messages merge, and that repeated fields are joined: a second ModelProto that
    holds metadata alone adds it.
    """
    import onnx

    addition = onnx.ModelProto()
    for key, value in entries.items():
        addition.metadata_props.add(key=key, value=value)
    with path.open("ab") as file:
        file.write(addition.SerializeToString())


def write_report(report: Report, folder: Path) -> None:
    """Write a report as JSON into the staging folder."""
    (folder / _REPORT).write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")


def publish(
    folder: Path, output: Path, report: str | Path | None = None, gated_output: str | Path | None = None
) -> None:
    """Move the finished files of a staging folder to their places, the compact model last.

    Report and gated model may lie on another file system: they are copied beside their targets first.

    Raises:
        ModelFileError: a target cannot be written.
    """
    try:
        if gated_output is not None:
            target = Path(gated_output)
            if (folder / f"{GATED}.data").exists():
                # the graph names its data file, so it must be saved anew to be renamed
                _copy_model(folder / GATED, target)
            else:
                _copy(folder / GATED, target)
        if report is not None:
            _copy(folder / _REPORT, Path(report))
        data = folder / f"{output.name}.data"
        if data.exists():
            data.replace(output.with_name(data.name))
        (folder / output.name).replace(output)
    except OSError as error:
        raise ModelFileError(f"{error.filename or output}: cannot be written ({error.strerror}).") from error


def _copy(source: Path, target: Path) -> None:
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copyfile(source, beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _copy_model(source: Path, target: Path) -> None:
    import onnx_ir as ir

    with staging_folder(target) as folder:
        save_model(ir.load(str(source)), folder / target.name)
        data = folder / f"{target.name}.data"
        data.replace(target.with_name(data.name))
        (folder / target.name).replace(target)


def _embed_weights(model: ir.Model) -> None:
    """Read weights that lie in files of the source: their references would not hold beside the output."""
    from onnx_ir import external_data

    external_data.load_to_model(model)
