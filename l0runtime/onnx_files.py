"""Is this file an ONNX model, and what is in it?

Every reader of ONNX files goes through here, so that a missing, truncated or foreign file gives the same clear
message everywhere. Only `onnx` is needed, never onnxruntime.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from l0runtime.errors import ModelFileError

if TYPE_CHECKING:
    import onnx

# first bytes of files that are often mistaken for an ONNX model, and what to do with each
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive, such as a torch checkpoint or an .npz file"),
    (b"\x80\x02", "a pickle, such as an old torch checkpoint"),
    (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the real file with `git lfs pull`"),
)


def check_model_path(path: str | Path) -> Path:
    """The path of a file that may be an ONNX model: it exists, is not empty, and no other known format.

    Raises:
        ModelFileError: the file is missing, a directory, empty, or recognisably something else.
    """
    path = Path(path)
    if not path.exists():
        raise ModelFileError(f"{path}: no such file. Give the path of an .onnx file.")
    if path.is_dir():
        raise ModelFileError(f"{path}: is a directory. Give the path of an .onnx file.")
    with path.open("rb") as file:
        head = file.read(32)
    if not head:
        raise ModelFileError(f"{path}: the file is empty. Expected an ONNX model; write or download it again.")
    for magic, description in _FOREIGN:
        if head.startswith(magic):
            raise ModelFileError(
                f"{path}: not an ONNX model but {description}. "
                "`l0runtime convert` turns a gated checkpoint into an ONNX model."
            )
    if head[8:9] == b"{":  # safetensors: an 8-byte length, then a JSON header
        raise ModelFileError(
            f"{path}: not an ONNX model but a safetensors file. "
            "`l0runtime convert` turns a gated checkpoint into an ONNX model."
        )
    return path


def read_model(path: str | Path, *, weights: bool = True) -> onnx.ModelProto:
    """Read an ONNX model.

    Args:
        path: the .onnx file.
        weights: also read tensors that are stored in files beside it (external data).
    Raises:
        ModelFileError: missing, truncated, another format, newer than the installed onnx, or its external data
            is missing.
    """
    import onnx
    from google.protobuf.message import DecodeError

    path = check_model_path(path)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise ModelFileError(
            f"{path}: cannot be read as an ONNX model ({error}). "
            "The file is truncated or of another format; write or download it again."
        ) from error
    if not model.HasField("graph") or not model.opset_import:
        raise ModelFileError(
            f"{path}: holds no ONNX graph. The file is truncated or of another format; write or download it again."
        )
    if model.ir_version > onnx.IR_VERSION:
        raise ModelFileError(
            f"{path}: has ONNX IR version {model.ir_version}; the installed onnx {onnx.__version__} reads up to "
            f"{onnx.IR_VERSION}. Upgrade onnx."
        )
    if weights:
        from onnx.external_data_helper import load_external_data_for_model

        try:
            load_external_data_for_model(model, str(path.parent))
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            raise ModelFileError(
                f"{path}: its external data cannot be read ({error}). Keep the data file beside the model."
            ) from error
    return model


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that is stored in a model: initializers and attributes, at any depth."""
    pending: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while pending:
        graph = pending.pop()
        yield from getattr(graph, "initializer", ())
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("g"):
                    pending.append(attribute.g)
                pending += attribute.graphs


def external_files(path: str | Path) -> list[str]:
    """Files beside a model that hold its weights, as the model names them.

    Raises:
        ModelFileError: the model cannot be read, or one lies outside its folder.
    """
    path = Path(path)
    found = {
        entry.value
        for tensor in all_tensors(read_model(path, weights=False))
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for location in found:
        if not (path.parent / location).resolve().is_relative_to(path.parent.resolve()):
            raise ModelFileError(f"{path}: its weights lie in '{location}', outside its folder. Write it again.")
    return sorted(found)


def stored_bytes(path: str | Path) -> int:
    """Size of an ONNX file together with the data files that its weights lie in."""
    path = Path(path)
    model = read_model(path, weights=False)
    names: set[str] = {
        entry.value for tensor in all_tensors(model) for entry in tensor.external_data if entry.key == "location"
    }
    return sum((path.parent / name).stat().st_size for name in [path.name, *names])
