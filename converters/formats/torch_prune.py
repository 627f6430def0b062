"""How do the masks of `torch.nn.utils.prune` become a gated model?

While a module is pruned, its state dict holds X_orig and X_mask in place of each pruned tensor X, and its forward
computes with X = X_orig * X_mask; structured and unstructured pruning differ in the mask's pattern only. (After
prune.remove, X itself holds the zeros: format state-dict.) The factory builds the model as it was before pruning.

Source: torch/nn/utils/prune.py, BasePruningMethod.apply. Checked on files written by torch itself.
"""

from __future__ import annotations

from converters.formats.folding import apply_mask, group_of_mask, take_options
from converters.formats.parameters import model_from_parameters, names_in, read_state
from converters.sources import Candidate, GatedModel, GateGroup, SourceOptions
from l0runtime.errors import ModelFileError

_ORIGINAL, _MASK = "_orig", "_mask"


class TorchPrune:
    """X = X_orig * X_mask, for any tensor X of any module."""

    name = "torch-prune"
    description = "state dict with the masks of torch.nn.utils.prune (X_orig, X_mask), with --model"

    def recognise(self, file: Candidate) -> bool:
        names = names_in(file)
        return any(name.endswith(_ORIGINAL) and name.removesuffix(_ORIGINAL) + _MASK in names for name in names)

    def load(self, file: Candidate, options: SourceOptions) -> GatedModel:
        take_options(file, options, self.name, {})
        state, gates = read_state(file), list[GateGroup]()
        for original in [name for name in state if name.endswith(_ORIGINAL)]:
            name = original.removesuffix(_ORIGINAL)
            if name + _MASK not in state:
                raise ModelFileError(f"{file.path}: holds {original}, but not {name}{_MASK}. The file is damaged.")
            mask = state.pop(name + _MASK)
            state[name] = apply_mask(state.pop(original), mask, name, file.path)
            gates.append(group_of_mask(name.removesuffix(".weight"), mask))
        return model_from_parameters(file, options, state, format=self.name, gates=gates)


SOURCE = TorchPrune()
