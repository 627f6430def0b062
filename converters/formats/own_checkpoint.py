"""How does a checkpoint written by `l0runtime.gates.save` become a gated model?"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from converters.example_inputs import find_example_inputs
from converters.live_module import from_module
from converters.sources import Candidate, GatedModel, SourceOptions
from l0runtime.errors import ModelFileError, OptionError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_METADATA_KEY = "l0runtime"  # of the safetensors header, see l0runtime/gates/checkpoint.py
_LARGEST_EXAMPLE = 100_000_000  # numbers in one example


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
        inputs = options.example_inputs or _stored_input(file)
        if inputs is None:
            inputs, note = find_example_inputs(module)
            notes.append(note)
        return from_module(module, inputs, format=self.name, notes=notes)


SOURCE = OwnCheckpoint()


def _stored_input(file: Candidate) -> tuple[Tensor] | None:
    """One random example of the shape that `save` was given; None where it was given none.

    Raises:
        ModelFileError: the header holds something else than sizes, or sizes of an absurd example.
    """
    import torch

    sizes = json.loads(file.metadata[_METADATA_KEY]).get("input_shape")  # `load` has checked that it is an object
    if sizes is None:
        return None
    is_shape = isinstance(sizes, list) and bool(sizes) and all(type(size) is int and size > 0 for size in sizes)
    if not is_shape or math.prod(sizes) > _LARGEST_EXAMPLE:
        raise ModelFileError(
            f"{file.path}: input_shape in its header is {str(sizes)[:80]}; expected sizes of at least 1, of "
            f"{_LARGEST_EXAMPLE} numbers at most."
        )
    return (torch.randn(1, *sizes, generator=torch.Generator().manual_seed(0)),)
