"""How does an ONNX file with constant gates or exact zeros become a gated model?"""

from __future__ import annotations

from converters.sources import Candidate, GatedModel, SourceOptions
from l0runtime.errors import OptionError
from l0runtime.onnx_files import read_model

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
        read_model(file.path, weights=False)  # for its clear errors
        return GatedModel(format=self.name, onnx_path=file.path)


SOURCE = OnnxFile()
