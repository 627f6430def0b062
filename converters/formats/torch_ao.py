"""How do the masks of `torch.ao.pruning` become a gated model?

A prepared module holds L.parametrizations.X.original, and computes with mask * original. The parametrizations keep
their masks out of model.state_dict(); they are in sparsifier.state_dict() alone, {"state": {"L.X": {"mask": ...}},
"groups": [...]}. So one file must hold both, under any names:

    torch.save({"model": model.state_dict(), "sparsifier": sparsifier.state_dict()}, path)

or the model's alone, with `--set sparsifier=FILE` for the other. Elementwise masks (WeightNormSparsifier and its kin)
have the weight's shape, those of the structured pruners one entry per row; these also move the bias to L._bias and,
unless their configuration says prune_bias=False, zero it where the row is pruned.

Source: torch/ao/pruning/sparsifier/base_sparsifier.py and utils.py, _experimental/pruner/base_structured_sparsifier.py
and parametrization.py. Checked on files written by torch itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.formats.folding import apply_mask, check_finite, group_of, group_of_mask, scale, take_options
from converters.formats.parameters import find_state, model_from_parameters, names_in, without_prefixes
from converters.sources import Candidate, GatedModel, GateGroup, SourceOptions
from converters.torch_files import read_torch_file, tensors_of
from l0runtime.errors import ModelFileError

if TYPE_CHECKING:
    from torch import Tensor

_ORIGINAL = re.compile(r"(?P<layer>.+\.|)parametrizations\.(?P<tensor>\w+)\.original")
_BIAS = "_bias"


class TorchAo:
    """mask * original, per weight or per row."""

    name = "torch-ao"
    description = "model and sparsifier state dicts of torch.ao.pruning, with --model"

    def recognise(self, file: Candidate) -> bool:
        if any(_ORIGINAL.fullmatch(name) for name in names_in(file)):
            return True
        content = file.torch_content
        parts = content.values() if isinstance(content, Mapping) else []
        return _masks_in(content) is not None or any(_masks_in(part) is not None for part in parts)

    def load(self, file: Candidate, options: SourceOptions) -> GatedModel:
        extra = take_options(file, options, self.name, {"sparsifier": (Path, "the path of a file")})
        content = file.torch_content
        parts = [content, *(content.values() if isinstance(content, Mapping) else [])]
        if "sparsifier" in extra:
            parts.append(read_torch_file(extra["sparsifier"]))
        sparsifier = next((part for part in parts if _masks_in(part) is not None), None)
        found = next((part for part in parts if _is_prepared(part)), None) or next(filter(_is_state, parts), None)
        if found is None:
            raise file.torch_error or ModelFileError(
                f"{file.path}: holds a sparsifier's masks, but no state dict of the model. Save both in one file: "
                'torch.save({"model": model.state_dict(), "sparsifier": sparsifier.state_dict()}, path).'
            )
        state = without_prefixes(tensors_of(found, file.path))
        if sparsifier is None:
            raise ModelFileError(
                f"{file.path}: holds parametrized weights, but not their masks, which model.state_dict() leaves out. "
                "Save sparsifier.state_dict() too and name that file with --set sparsifier=FILE, or save the model "
                "after sparsifier.squash_mask()."
            )
        gates = _fold(state, sparsifier, file.path)
        return model_from_parameters(file, options, state, format=self.name, gates=gates)


SOURCE = TorchAo()


def _masks_in(content: object) -> Mapping[str, Any] | None:
    """The masks of a sparsifier's state dict, by the full names of their tensors."""
    if not isinstance(content, Mapping) or not isinstance(content.get("groups"), list):
        return None
    masks = content.get("state")
    if isinstance(masks, Mapping) and masks and all(isinstance(entry, Mapping) for entry in masks.values()):
        return masks
    return None


def _is_prepared(content: object) -> bool:
    return _is_state(content) and any(_ORIGINAL.fullmatch(str(name)) for name in content)  # type: ignore[attr-defined]


def _is_state(content: object) -> bool:
    return content is not None and find_state(content) is content


def _fold(state: dict[str, Tensor], sparsifier: Mapping[str, Any], path: Path) -> list[GateGroup]:
    """Replace every parametrized tensor by its masked value, in place."""
    gates = []
    masks = _masks_in(sparsifier) or {}
    settings = {group.get("tensor_fqn"): group for group in sparsifier["groups"] if isinstance(group, Mapping)}
    for original in [name for name in state if _ORIGINAL.fullmatch(name)]:
        match = _ORIGINAL.fullmatch(original)
        assert match is not None
        layer, tensor = match["layer"], match["tensor"]
        name = f"{layer}{tensor}"
        mask = masks.get(name, {}).get("mask")
        if mask is None or not hasattr(mask, "shape"):
            raise ModelFileError(
                f"{path}: {name} is parametrized, but the sparsifier holds no mask for it. "
                "The two state dicts belong to different models."
            )
        weight = state.pop(original)
        if tuple(mask.shape) != (weight.shape[0],) or weight.dim() == 1:
            state[name] = apply_mask(weight, mask, name, path)
            gates.append(group_of_mask(layer.removesuffix(".") or tensor, mask))
            continue
        check_finite(mask, f"the mask of {name}", path)
        state[name] = scale(weight, mask, 0)
        gates.append(group_of(layer.removesuffix("."), mask, None))
        bias = state.pop(layer + _BIAS, None)
        if bias is not None:
            is_pruned = settings.get(name, {}).get("prune_bias", True)
            state[f"{layer}bias"] = apply_mask(bias, mask, f"{layer}bias", path) if is_pruned else bias
    left_over = [name for name in masks if name not in state]
    if left_over:
        raise ModelFileError(f"{path}: the sparsifier holds a mask for {left_over[0]}, which the model does not have.")
    return gates
