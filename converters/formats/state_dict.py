"""How do bare parameters, and the factory of their architecture, become a gated model?

A safetensors file, or what torch.save made of a state dict (alone, or under the key state_dict, model_state_dict or
model), with `--model package.module:factory`. What is pruned in it is exactly zero: soft-pruned models of
Torch-Pruning, weights of torch.ao.pruning after squash_mask, weights of NNI's export_model, anything set to 0 by hand.
"""

from __future__ import annotations

from converters.formats.parameters import find_state, model_from_parameters, read_state
from converters.sources import Candidate, GatedModel, SourceOptions
from l0runtime.errors import OptionError


class StateDict:
    """Parameters alone; the least specific format, so it is asked last."""

    name = "state-dict"
    description = "safetensors file or torch state dict, with --model package.module:factory"

    def recognise(self, file: Candidate) -> bool:
        if file.is_safetensors:
            return bool(file.header)
        return find_state(file.torch_content) is not None

    def load(self, file: Candidate, options: SourceOptions) -> GatedModel:
        if options.model is None:
            raise OptionError(
                f"{file.path}: holds parameters alone. Say which model they belong to: "
                "model=package.module:factory, or --model on the command line."
            )
        if options.extra:
            raise OptionError(f"{file.path}: format {self.name} has no options; found {', '.join(options.extra)}.")
        return model_from_parameters(file, options, read_state(file), format=self.name)


SOURCE = StateDict()
