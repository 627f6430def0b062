"""How does a checkpoint of nn_pruning (Hugging Face; Lagunas et al. 2021) become a gated model?

A checkpoint-N folder of its trainer, from before compile_model: a BERT (config.json, pytorch_model.bin) whose pruned
linear layers hold L.mask_module.context_modules.{0,1}.mask_scores beside weight and bias, and sparse_args.json, which
says how scores become masks:

    {attention,dense}_pruning_method   "method" or "method:submethod"
    {attention,dense}_block_{rows,cols}, final_threshold, linear_min_parameters, bias_mask, attention_output_with_dense

    scores               default: one per block; 1d, 1d_alt: rows times columns, where a missing one counts as 1
    topK                 1 for the int(threshold * n) largest
    threshold            1 where score > threshold, but int(min_parameters * n) + 1 at least
    sigmoied_threshold   the same with sigmoid(score)
    l0                   clip(sigmoid(score) 1.2 - 0.1)

weight -> mask * weight; with bias_mask, the bias of a row without a weight is 0. gelu_patch makes the activation ReLU.
Refused: ampere patterns, NoNorm in place of LayerNorm (layer_norm_patch), masks from rewinding. A compiled model holds
plain zeros and no scores: format state-dict.

Source: nn_pruning/modules/masked_nn.py, binarizer.py, patch_coordinator.py and sparse_xp.py, version 0.1.2. Checked
on folders that the package itself patched, masked and saved, against its own outputs; not on one of the authors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.formats.folding import apply_mask, check_finite, group_of_mask, take_options
from converters.formats.hugging_face import CONFIG, read_json, read_weights, whole_number
from converters.formats.parameters import model_from_parameters, names_in
from converters.sources import Candidate, GatedModel, GateGroup, SourceOptions
from l0runtime.errors import ModelFileError, OptionError, UnsupportedModelError

if TYPE_CHECKING:
    from torch import Tensor

_SETTINGS = "sparse_args.json"
_SCORES = re.compile(r"(?P<layer>.+)\.mask_module\.context_modules\.(?P<axis>[01])\.mask_scores")
_ATTENTION = (".query", ".key", ".value")
_ATTENTION_OUTPUT = ".attention.output.dense"
# "magnitude" and the submethod "joint" fail in the package itself, so no checkpoint has them
_METHODS = ("topK", "threshold", "sigmoied_threshold", "l0")
_SUBMETHODS = ("default", "1d", "1d_alt")
_MIN_PARAMETERS = 0.005
# settings that change the network in ways this reader does not know, and their value for "not used"
_REFUSED = {"ampere_pruning_method": "disabled", "layer_norm_patch": False, "rewind_model_name_or_path": None}


class NnPruning:
    """A BERT with scores on blocks, rows and columns of its linear layers."""

    name = "nn-pruning"
    description = "checkpoint folder of nn_pruning: a Hugging Face BERT with mask_scores, and sparse_args.json"

    def recognise(self, file: Candidate) -> bool:
        if file.path.is_dir():
            return (file.path / _SETTINGS).is_file()
        return any(_SCORES.fullmatch(name) for name in names_in(file))

    def load(self, file: Candidate, options: SourceOptions) -> GatedModel:
        take_options(file, options, self.name, {})
        if options.model is not None:
            raise OptionError(f"{file.path}: config.json says which network it is; leave out the model.")
        folder = file.path if file.path.is_dir() else file.path.parent
        settings = folder / _SETTINGS
        arguments = read_json(settings)
        _check_supported(arguments, settings)
        from converters.formats.bert import Bert, example_inputs, renamed, shape_of

        state = renamed(read_weights(folder))
        gates = _fold(state, arguments, settings)
        config = dict(read_json(folder / CONFIG))
        if arguments.get("gelu_patch"):
            config["hidden_act"] = "relu"
        shape = shape_of(config, state, folder / CONFIG)
        return model_from_parameters(
            file,
            options,
            state,
            format=self.name,
            built=(Bert(shape, "bert.pooler.dense.weight" in state), example_inputs(shape)),
            gates=gates,
        )


SOURCE = NnPruning()


@dataclass(frozen=True)
class _Rule:
    """How the scores of one kind of layer become a mask."""

    method: str
    submethod: str
    rows: int
    cols: int
    threshold: float
    min_parameters: float

    def mask(self, weight: Tensor, scores: Mapping[int, Tensor], name: str, path: Path) -> Tensor:
        """The mask of a weight, of its shape."""
        import torch

        blocks = (weight.shape[0] // self.rows, weight.shape[1] // self.cols)
        if self.submethod.startswith("1d"):
            vectors = [scores.get(axis, torch.ones(blocks[axis])) for axis in (0, 1)]
            _check_shapes(vectors, [(blocks[0],), (blocks[1],)], name, path)
            values = vectors[0][:, None] @ vectors[1][None, :]
        else:
            values = scores[0] if 0 in scores else torch.empty(0)
            _check_shapes([values], [blocks], name, path)
        return self._binarise(values).repeat_interleave(self.rows, 0).repeat_interleave(self.cols, 1)

    def _binarise(self, scores: Tensor) -> Tensor:
        import torch

        if self.method == "topK":
            return _largest(scores, self.threshold)
        if self.method == "l0":
            return (torch.sigmoid(scores) * 1.2 - 0.1).clamp(0, 1)
        mask = (torch.sigmoid(scores) if self.method == "sigmoied_threshold" else scores) > self.threshold
        least = int(self.min_parameters * scores.numel()) + 1 if self.min_parameters else 0
        if int(mask.sum()) < least:
            mask = scores > scores.flatten().kthvalue(max(scores.numel() - least, 1)).values
        return mask.float()


def _largest(values: Tensor, fraction: float) -> Tensor:
    """1 for the int(fraction * n) largest, else 0."""
    import torch

    order = values.flatten().argsort(descending=True)
    mask = torch.zeros(values.numel())
    mask[order[: int(fraction * values.numel())]] = 1
    return mask.reshape(values.shape)


def _check_shapes(found: list[Tensor], expected: list[tuple[int, ...]], name: str, path: Path) -> None:
    for scores, shape in zip(found, expected, strict=True):
        if tuple(scores.shape) != shape:
            raise ModelFileError(
                f"{path}: the scores of {name} have shape {list(scores.shape)}; its weight and the block size of this "
                f"file make {list(shape)}. The files belong to different runs."
            )
        check_finite(scores, f"the scores of {name}", path)


def _check_supported(arguments: Mapping[str, Any], path: Path) -> None:
    for key, unused in _REFUSED.items():
        if arguments.get(key, unused) != unused:
            raise UnsupportedModelError(
                f"{path}: {key} is {arguments[key]!r}, which this reader does not know. Compile the model with "
                "nn_pruning (compile_model), export it to ONNX and convert that."
            )


def _rule(arguments: Mapping[str, Any], kind: str, transposed: bool, path: Path) -> _Rule:
    """The rule for layers of one kind, attention or dense; attention's output has its blocks the other way round."""
    method, _, submethod = str(arguments.get(f"{kind}_pruning_method", "topK")).partition(":")
    submethod = submethod or "default"
    if method not in _METHODS or submethod not in _SUBMETHODS:
        raise UnsupportedModelError(
            f"{path}: {kind}_pruning_method is {arguments.get(f'{kind}_pruning_method')!r}; known are "
            f"{', '.join(_METHODS)}, each alone or with :{', :'.join(_SUBMETHODS[1:])}."
        )
    rows, cols = (whole_number(dict(arguments), f"{kind}_block_{axis}", path, 1) for axis in ("rows", "cols"))
    numbers = [arguments.get("final_threshold"), arguments.get("linear_min_parameters", _MIN_PARAMETERS)]
    if not all(isinstance(number, int | float) for number in numbers):
        raise ModelFileError(f"{path}: final_threshold and linear_min_parameters are {numbers}; expected numbers.")
    threshold, least = (float(number) for number in numbers if number is not None)
    return _Rule(method, submethod, *((cols, rows) if transposed else (rows, cols)), threshold, least)


def _fold(state: dict[str, Tensor], arguments: Mapping[str, Any], path: Path) -> list[GateGroup]:
    """Replace scores, weights and biases of all pruned layers by masked weights and biases, in place."""
    scores: dict[str, dict[int, Tensor]] = {}
    for name in list(state):
        match = _SCORES.fullmatch(name)
        if match is not None:
            scores.setdefault(match["layer"], {})[int(match["axis"])] = state.pop(name)
    if not scores:
        raise ModelFileError(
            f"{path.parent}: holds no mask_scores: the model is compiled already, or was not pruned. A compiled model "
            "is read as a state dict: give the weights' file and --model."
        )
    gates = []
    for layer, found in scores.items():
        weight, bias = state.get(f"{layer}.weight"), state.get(f"{layer}.bias")
        if weight is None or weight.dim() != 2:
            raise ModelFileError(f"{path.parent}: holds scores of {layer}, but no weight. The file is damaged.")
        mask = _rule_of(layer, arguments, path).mask(weight, found, layer, path)
        state[f"{layer}.weight"] = apply_mask(weight, mask, f"{layer}.weight", path)
        if bias is not None and arguments.get("bias_mask", False):
            state[f"{layer}.bias"] = apply_mask(bias, mask.ne(0).any(1).double(), f"{layer}.bias", path)
        gates.append(group_of_mask(layer, mask))
    return gates


def _rule_of(layer: str, arguments: Mapping[str, Any], path: Path) -> _Rule:
    if layer.endswith(_ATTENTION):
        return _rule(arguments, "attention", False, path)
    with_dense = arguments.get("attention_output_with_dense", True)
    if layer.endswith(_ATTENTION_OUTPUT) and not with_dense:
        return _rule(arguments, "attention", True, path)
    return _rule(arguments, "dense", False, path)
