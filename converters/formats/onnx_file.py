"""How does an ONNX file with constant gates or exact zeros become a gated model?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from converters.sources import Candidate, GatedModel, SourceOptions
from l0runtime.errors import ModelFileError, OptionError
from l0runtime.onnx_files import all_tensors, read_model

if TYPE_CHECKING:
    import onnx

# first byte of a ModelProto: field 1 (ir_version) as varint, or field 7 (graph) where a writer left it out
_FIRST_BYTES = (b"\x08", b"\x3a", b"\x12", b"\x42")


class OnnxFile:
    """`.onnx` from any exporter: what is exactly zero in it, or multiplied by zero, is proved on the graph."""

    name = "onnx"
    description = "ONNX file with exact zeros or constant gates"

    def recognise(self, file: Candidate) -> bool:
        if file.path.suffix.lower() == ".onnx" and not (file.is_zip or file.is_safetensors or file.head[:1] == b"\x80"):
            return True  # a damaged file too: its reader explains what is wrong
        return file.head.startswith(_FIRST_BYTES) and not file.is_safetensors and file.path.suffix.lower() != ".npy"

    def load(self, file: Candidate, options: SourceOptions) -> GatedModel:
        if options.model is not None or options.example_inputs is not None:
            given = "model" if options.model is not None else "example inputs"
            raise OptionError(f"{file.path}: an ONNX file holds its own graph and inputs; leave out the {given}.")
        _check_external_data(read_model(file.path, weights=False), file.path)
        return GatedModel(format=self.name, onnx_path=file.path)


SOURCE = OnnxFile()


def _check_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Weights outside the file must lie beside it, or below, and be all there.

    Raises:
        ModelFileError: a missing or short data file, or a location elsewhere on the disk.
    """
    folder = path.parent.resolve()
    for tensor in all_tensors(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if not entries:
            continue
        location = entries.get("location", "")
        target = (folder / location).resolve()
        if not location or Path(location).is_absolute() or not target.is_relative_to(folder):
            raise ModelFileError(
                f"{path}: the values of {tensor.name} are said to lie in {location!r}, outside of the model's folder. "
                "Only files beside the model are read."
            )
        if not target.is_file():
            raise ModelFileError(f"{path}: the values of {tensor.name} lie in {location!r}, which is missing.")
        end = _number(entries, "offset") + _number(entries, "length")
        if end > target.stat().st_size:
            raise ModelFileError(
                f"{path}: the values of {tensor.name} end at byte {end} of {location!r}, which has "
                f"{target.stat().st_size}. The data file is truncated, or belongs to another model."
            )


def _number(entries: dict[str, str], key: str) -> int:
    text = entries.get(key, "0")
    return int(text) if text.isdigit() else 0
