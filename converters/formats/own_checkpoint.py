"""How does a checkpoint written by `l0runtime.gates.save` become a gated model?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from converters.example_inputs import find_example_inputs
from converters.live_module import from_module
from converters.sources import Candidate, GatedModel, SourceOptions
from l0runtime.errors import OptionError

if TYPE_CHECKING:
    from torch.nn import Module

_METADATA_KEY = "l0runtime"  # of the safetensors header, see l0runtime/gates/checkpoint.py


class OwnCheckpoint:
    """One safetensors file: tensors, and a header from which the model is rebuilt."""

    name = "l0runtime"
    description = "checkpoint written by l0runtime.gates.save"

    def recognise(self, file: Candidate) -> bool:
        return _METADATA_KEY in file.metadata

    def load(self, file: Candidate, options: SourceOptions) -> GatedModel:
        from l0runtime.gates.checkpoint import load

        if options.model is not None:
            raise OptionError(f"{file.path}: the checkpoint names its own architecture; leave out the model.")
        module: Module = load(file.path)
        notes: list[str] = []
        inputs = options.example_inputs
        if inputs is None:
            inputs, note = find_example_inputs(module)
            notes.append(note)
        return from_module(module, inputs, format=self.name, notes=notes)


SOURCE = OwnCheckpoint()
