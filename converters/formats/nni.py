"""How do the masks of NNI (Neural Network Intelligence) become a gated model?

Masks are a dict {module: {"weight": mask, "bias": mask or None}} of 0 and 1. The file may be

    the masks            as Pruner.export_model(model_path, mask_path) or torch.save(masks) writes them; the weights are
                         named by `--set weights=FILE`
    the weights          of a wrapped model: L.weight, L.weight_mask, L.module.weight (NNI 2) or
                         L._nni_wrapper.weight, L._nni_wrapper.weight_mask (NNI 3)

NNI computes with weight * mask. Masks of inputs and outputs (NNI 3: _input_0, _output_0) act on activations, of which
the parameters know nothing: unless all ones, they are refused. So are other apply methods than the product: a state
dict does not say which was used, so a pruner with movement scores or slim factors is refused.

Source: nni/compression/pytorch/base/compressor.py and pruner.py (2.x), nni/compression/base/wrapper.py, target_space.py
and apply_method.py (3.0). Checked on files written by NNI 3.0 and on files of NNI 2's layout made by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.formats.folding import apply_mask, group_of_mask, take_options
from converters.formats.parameters import model_from_parameters, names_in, read_state
from converters.sources import Candidate, GatedModel, GateGroup, SourceOptions
from l0runtime.errors import ModelFileError, OptionError, UnsupportedModelError

if TYPE_CHECKING:
    from torch import Tensor

_WRAPPER3 = "._nni_wrapper."
_MASK = "_mask"
_TARGETS = ("weight", "bias")
_UNSUPPORTED = ("_mvp_score", "_slim_factor")


class Nni:
    """weight * mask, with masks beside the weights or in a file of their own."""

    name = "nni"
    description = "masks of NNI with --set weights=FILE, or the state dict of a wrapped model; with --model"

    def recognise(self, file: Candidate) -> bool:
        return _is_mask_dict(file.torch_content) or _is_wrapped(names_in(file))

    def load(self, file: Candidate, options: SourceOptions) -> GatedModel:
        paths = take_options(
            file,
            options,
            self.name,
            {"weights": (Path, "the path of a state dict"), "masks": (Path, "the path of the masks")},
        )
        if len(paths) == 2:
            raise OptionError(f"{file.path}: give the masks or the weights in another file, not both.")
        notes = []
        if _is_mask_dict(file.torch_content):
            if "weights" not in paths:
                raise OptionError(f"{file.path}: holds NNI's masks alone. Name the weights: --set weights=FILE.")
            masks, weights = file, Candidate(paths["weights"])
            notes.append(f"weights from {weights.path.name}, masks from {file.path.name}")
        elif "masks" in paths:
            masks, weights = Candidate(paths["masks"]), file
        else:
            state = read_state(file)
            gates = _fold_wrapped(state, file.path)
            return model_from_parameters(file, options, state, format=self.name, gates=gates)
        state = read_state(weights)
        gates = _fold_masks(state, _read_masks(masks), masks.path)
        return model_from_parameters(file, options, state, format=self.name, gates=gates, notes=notes)


SOURCE = Nni()


def _is_mask_dict(content: object) -> bool:
    """{module: {target: tensor or None}}, with a mask of a weight among them."""
    import torch

    if not isinstance(content, Mapping) or not content:
        return False
    return all(
        isinstance(name, str)
        and isinstance(targets, Mapping)
        and "weight" in targets
        and all(mask is None or isinstance(mask, torch.Tensor) for mask in targets.values())
        for name, targets in content.items()
    )


def _is_wrapped(names: frozenset[str]) -> bool:
    if any(_WRAPPER3 in name for name in names):
        return True
    layers = [name.removesuffix(".weight_mask") for name in names if name.endswith(".weight_mask")]
    return any(f"{layer}.module.weight" in names for layer in layers)


def _read_masks(file: Candidate) -> Mapping[str, Mapping[str, Any]]:
    content = file.torch_content
    if not _is_mask_dict(content):
        raise file.torch_error or ModelFileError(
            f"{file.path}: no masks of NNI; expected a dict of tensors by module and target, "
            '{"conv1": {"weight": ..., "bias": ...}}.'
        )
    masks: Mapping[str, Mapping[str, Any]] = content
    return masks


def _fold_masks(state: dict[str, Tensor], masks: Mapping[str, Mapping[str, Any]], path: Path) -> list[GateGroup]:
    """Multiply the masks of a mask file into the weights, in place."""
    gates = []
    for layer, targets in masks.items():
        for target, mask in targets.items():
            name = f"{layer}.{target}"
            if mask is None:
                continue
            if target not in _TARGETS:
                _refuse_activation_mask(name, mask, path)
                continue
            if name not in state:
                raise ModelFileError(f"{path}: holds a mask for {name}, which the weights do not have.")
            state[name] = apply_mask(state[name], mask, name, path)
            if target == "weight":
                gates.append(group_of_mask(layer, mask))
    return gates


def _fold_wrapped(state: dict[str, Tensor], path: Path) -> list[GateGroup]:
    """Unwrap the layers of a wrapped model and multiply their masks in, in place."""
    gates = []
    unsupported = [name for name in state if name.endswith(_UNSUPPORTED)]
    if unsupported:
        raise UnsupportedModelError(
            f"{path}: {unsupported[0]} takes part in the forward of NNI's pruner, not the mask alone. "
            "Let NNI unwrap the model (pruner.unwrap_model()), save its state dict and the masks."
        )
    masks = {name.removesuffix(_MASK): state.pop(name) for name in list(state) if name.endswith(_MASK)}
    for wrapped in [name for name in state if _WRAPPER3 in name]:
        state[wrapped.replace(_WRAPPER3, ".")] = state.pop(wrapped)
    layers = {name.replace(_WRAPPER3, ".").rpartition(".")[0] for name in masks}
    for layer in layers:  # NNI 2: the module itself, with the values last computed with
        for inner in [name for name in state if name.startswith(f"{layer}.module.")]:
            tensor = state.pop(inner)
            state.setdefault(f"{layer}.{inner.removeprefix(f'{layer}.module.')}", tensor)
    for masked, mask in masks.items():
        name = masked.replace(_WRAPPER3, ".")
        layer, _, target = name.rpartition(".")
        if target not in _TARGETS:
            _refuse_activation_mask(name, mask, path)
            continue
        if name not in state:
            raise ModelFileError(f"{path}: holds a mask for {name}, which is missing. The file is damaged.")
        state[name] = apply_mask(state[name], mask, name, path)
        if target == "weight":
            gates.append(group_of_mask(layer, mask))
    return gates


def _refuse_activation_mask(name: str, mask: Tensor, path: Path) -> None:
    if not bool((mask == 1).all()):
        raise UnsupportedModelError(
            f"{path}: {name} masks an activation, not a parameter. "
            "Let NNI speed the model up (ModelSpeedup), or export the masked model to ONNX and convert that."
        )
