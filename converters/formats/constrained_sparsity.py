"""How does a checkpoint of constrained_sparsity (Gallego-Posada et al. 2022) become a gated model?

`model.pt` or `final_model_state.pt`: the state dict of L0MLP (logistic regression too), L0LeNet5, L0WideResNet or
L0ResNet18/50. Structured: weight_log_alpha [in] of a linear layer gates its inputs, [out] of a convolution its filters
and their bias. Unstructured: weight_log_alpha has the weight's shape and bias_log_alpha the bias's. For another
network `--model` names the factory of the same one with plain layers.

Rule: median, temperature 2/3 (`--set temperature=T` for a run with another --temp). BatchNorm behind a gated
convolution is of one of two kinds, with the same parameters: L0 leaves a closed channel at exactly 0, regular makes it
the constant bias - mean weight / deviation. The file does not say which, so with closed channels the option
batch_norm=L0 or batch_norm=regular (their --bn_type) must. activation is their --act_fn.

Source: sparse/l0_layers.py, models.py, resnet_models.py, wresnet_models.py, utils.py and core_exp.py of
gallego-posada/constrained_sparsity. Not checked on a file of the authors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from converters.formats.folding import (
    apply_mask,
    check_length,
    gate_values,
    group_of,
    group_of_mask,
    one_of,
    scale,
    take_options,
)
from converters.formats.parameters import model_from_parameters, names_in, read_state
from converters.sources import Candidate, GatedModel, GateGroup, SourceOptions
from l0runtime.errors import ModelFileError, OptionError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_GATE, _BIAS_GATE = "weight_log_alpha", "bias_log_alpha"
_TEMPERATURE = 2 / 3
# the BatchNorm behind each convolution of a residual block
_NORMS = {
    "conv1": "batch_norm1",
    "conv2": "batch_norm2",
    "conv3": "batch_norm3",
    "shortcut_conv": "shortcut_bn",
}
_WIDE_NORMS = {"conv1": "batch_norm2"}  # pre-activation: batch_norm1 stands before conv1
_RESIDUAL = re.compile(r"(?P<block>layer[1-4]\.\d+)\.(?P<conv>\w+)")


class ConstrainedSparsity:
    """L0MLP, L0LeNet5, L0WideResNet, L0ResNet18 and L0ResNet50, structured or not."""

    name = "constrained-sparsity"
    description = "state dict of constrained_sparsity (Gallego-Posada et al. 2022)"

    def recognise(self, file: Candidate) -> bool:
        return any(name.rpartition(".")[2] == _GATE for name in names_in(file))

    def load(self, file: Candidate, options: SourceOptions) -> GatedModel:
        known: dict[str, Any] = {
            "temperature": (float, "a number above 0"),
            "batch_norm": one_of("L0", "regular"),
            "activation": one_of("ReLU", "Tanh", "LeakyReLU"),
        }
        extra = take_options(file, options, self.name, known)
        beta = extra.get("temperature", _TEMPERATURE)
        state = read_state(file)
        gates, closed = _fold(state, beta, file)
        _fold_norms(state, closed, extra.get("batch_norm"), file)
        built = None if options.model is not None else _build(state, extra.get("activation", "ReLU"), file)
        note = f"gates: median rule at temperature {beta:.3g}; the file does not say it, see the option temperature"
        return model_from_parameters(file, options, state, format=self.name, built=built, gates=gates, notes=[note])


SOURCE = ConstrainedSparsity()


def _fold(state: dict[str, Tensor], beta: float, file: Candidate) -> tuple[list[GateGroup], dict[str, Tensor]]:
    """Multiply all gates in, in place; also the gates of each structured convolution, by layer."""
    gates, of_filters = [], {}
    for name in [name for name in state if name.rpartition(".")[2] == _GATE]:
        prefix = name.removesuffix(_GATE)
        layer = prefix.removesuffix(".")
        weight, bias = state.get(f"{prefix}weight"), state.get(f"{prefix}bias")
        if weight is None or weight.dim() not in (2, 4):
            raise ModelFileError(f"{file.path}: holds {name}, but no weight of a layer beside it. The file is damaged.")
        z = gate_values(state.pop(name), "median", beta, name, file.path)
        bias_gate = state.pop(f"{prefix}{_BIAS_GATE}", None)
        if z.dim() == weight.dim():
            state[f"{prefix}weight"] = apply_mask(weight, z, f"{prefix}weight", file.path)
            if bias is not None:
                if bias_gate is None:
                    raise ModelFileError(f"{file.path}: holds no {prefix}{_BIAS_GATE}. The file is damaged.")
                bias_z = gate_values(bias_gate, "median", beta, f"{prefix}{_BIAS_GATE}", file.path)
                state[f"{prefix}bias"] = apply_mask(bias, bias_z, f"{prefix}bias", file.path)
            gates.append(group_of_mask(layer, z))
            continue
        if weight.dim() == 2:
            check_length(z, weight.shape[1], name, "input unit", file.path)
            state[f"{prefix}weight"] = scale(weight, z, 1)
        else:
            check_length(z, weight.shape[0], name, "filter", file.path)
            state[f"{prefix}weight"] = scale(weight, z, 0)
            if bias is not None:
                state[f"{prefix}bias"] = scale(bias, z, 0)
            of_filters[layer] = z
        gates.append(group_of(layer, z, "median"))
    return gates, of_filters


def _fold_norms(state: dict[str, Tensor], of_filters: Mapping[str, Tensor], kind: str | None, file: Candidate) -> None:
    """Keep closed channels at 0 behind an L0 BatchNorm, in place."""
    is_wide = "batch_norm.weight" in state
    for layer, z in of_filters.items():
        match = _RESIDUAL.fullmatch(layer)
        norm = match and (_WIDE_NORMS if is_wide else _NORMS).get(match["conv"])
        prefix = f"{match['block']}.{norm}" if match and norm else ""
        if f"{prefix}.weight" not in state or bool((z != 0).all()):
            continue
        if kind is None:
            raise OptionError(
                f"{file.path}: {int((z == 0).sum())} channels of {layer} are closed, and the file does not say what "
                f"{prefix} does with them. Add --set batch_norm=L0 if the network was trained with --bn_type L0 "
                "(closed channels stay 0), or --set batch_norm=regular."
            )
        if kind == "L0":
            is_open = (z != 0).double()
            for parameter in (f"{prefix}.weight", f"{prefix}.bias"):
                if parameter in state:
                    state[parameter] = scale(state[parameter], is_open, 0)


def _build(state: Mapping[str, Tensor], activation: str, file: Candidate) -> tuple[Module, Any]:
    from converters.formats.plain_networks import (
        Mlp,
        example_image,
        lenet5_of,
        resnet_of,
        wide_resnet_of,
        widths_of_mlp,
    )

    module: Module
    try:
        if "convs.0.weight" in state:
            module, shape = lenet5_of(state, activation)
        elif "fcs.0.weight" in state:
            widths = widths_of_mlp(state, "fcs")
            module, shape = Mlp("fcs", widths, "fcs.0.bias" in state, activation), (widths[0],)
        elif "layer4.0.conv1.weight" in state:
            module, shape = resnet_of(state, activation)
        elif "layer3.0.conv1.weight" in state:
            module, shape = wide_resnet_of(state, activation)
        else:
            raise OptionError(
                f"{file.path}: gates of an unknown network (first parameter {next(iter(state))}); known are L0MLP, "
                "L0LeNet5, L0WideResNet and L0ResNet. Name the factory of the same network with plain layers: "
                "--model package.module:factory."
            )
    except (KeyError, IndexError, ValueError) as error:
        if isinstance(error, OptionError):
            raise
        raise ModelFileError(f"{file.path}: its state dict lacks a parameter of its network ({error}).") from error
    return module, example_image(shape)
