"""Is this file an ONNX model, and what is in it?

Every reader of ONNX files goes through here, so that a missing, truncated or foreign file gives the same clear
message everywhere. Only `onnx` is needed, never onnxruntime.
"""

from __future__ import annotations

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
