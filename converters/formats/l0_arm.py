"""How does a checkpoint of l0-arm (leo-yangli/l0-arm, Li & Ji 2019) become a gated model?

`checkpoints/<model>_<time>/<epoch>.model`: the state dict of ARMLeNet5, ARMMLP or ARMWideResNet. Dense weights are
stored [in, out]; ARMDense gates its input units, the bias ungated; ArmConv2d multiplies its output, after the bias.

Rule, with pi = sigmoid(k phi): z = pi where pi >= t, else 0; k = 7 and t = 0.5 (config.py). So an open gate is
fractional, not 1. None of it is in the file; the options k, t, hardsigmoid (pi = clip(k phi / 7 + 0.5, 0, 1)) and
gates=binary (use_t_in_testing = False: z = 1 where phi > 0) are for runs with another configuration. A moving average
is never saved by that code.

Source: models/layer/ARMDense.py, ARMConv.py, models/{Lenet,MLP,WRN}.py, config.py and main.py of the repository. Not
checked on a file of the authors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from converters.formats.folding import check_finite, check_length, group_of, one_of, scale, take_options
from converters.formats.parameters import model_from_parameters, names_in, read_state
from converters.sources import Candidate, GatedModel, GateGroup, SourceOptions
from l0runtime.errors import ModelFileError, OptionError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_GATE = ".z_phi"
_WEIGHTS = ".weights"
_BLOCK = re.compile(r"block(?P<group>[123])\.layer\.(?P<index>\d+)\.(?P<rest>.+)")
# theirs: the names of plain_networks.WideResNet
_WIDE_RESNET = {"bn": "batch_norm", "bn1": "batch_norm1", "bn2": "batch_norm2", "convShortcut": "shortcut_conv"}
_DENSE = "fcout.weight"  # MAPDense, [in, out]
_SCALE, _THRESHOLD = 7.0, 0.5


class L0Arm:
    """ARMLeNet5, ARMMLP and ARMWideResNet."""

    name = "l0-arm"
    description = "state dict of l0-arm (ARMLeNet5, ARMMLP, ARMWideResNet)"

    def recognise(self, file: Candidate) -> bool:
        return any(name.endswith(_GATE) for name in names_in(file))

    def load(self, file: Candidate, options: SourceOptions) -> GatedModel:
        known: dict[str, Any] = {
            "k": (float, "a number"),
            "t": (float, "a number"),
            "hardsigmoid": one_of("yes", "no"),
            "gates": one_of("fractional", "binary"),
        }
        extra = take_options(file, options, self.name, known)
        if options.model is not None:
            raise OptionError(f"{file.path}: the parameters' names say which network it is; leave out the model.")
        state, gates = read_state(file), list[GateGroup]()
        for name in [name for name in state if name.endswith(_GATE)]:
            layer = name.removesuffix(_GATE)
            z = _evaluate(state.pop(name), extra, name, file)
            gates.append(_fold(state, layer, z, name, file))
        state = _renamed(state)
        module, shape = _build(state, file)
        from converters.formats.plain_networks import example_image

        k, t = extra.get("k", _SCALE), extra.get("t", _THRESHOLD)
        kind = (
            "1 where phi > 0" if extra.get("gates") == "binary" else f"pi(k phi) where at least t, k = {k:g}, t = {t:g}"
        )
        return model_from_parameters(
            file,
            options,
            state,
            format=self.name,
            built=(module, example_image(shape)),
            gates=gates,
            notes=[f"gates: {kind}; the file does not say it, see the options k, t, hardsigmoid and gates"],
        )


SOURCE = L0Arm()


def _evaluate(phi: Tensor, extra: Mapping[str, Any], name: str, file: Candidate) -> Tensor:
    """Gate values by the evaluation rule, in float64."""
    import torch

    check_finite(phi, name, file.path)
    k = extra.get("k", _SCALE)
    pi = (k * phi / 7.0 + 0.5).clamp(0, 1) if extra.get("hardsigmoid") == "yes" else torch.sigmoid(k * phi)
    if extra.get("gates") == "binary":
        return (phi > 0).double()
    return torch.where(pi < extra.get("t", _THRESHOLD), torch.zeros_like(pi), pi).double()


def _fold(state: dict[str, Tensor], layer: str, z: Tensor, name: str, file: Candidate) -> GateGroup:
    """Multiply one layer's gates into its weights, in torch's orientation, under torch's name."""
    weights = state.pop(layer + _WEIGHTS, None)
    if weights is None:
        raise ModelFileError(f"{file.path}: holds {name}, but not {layer}{_WEIGHTS}. The file is damaged.")
    check_length(z, weights.shape[0], name, "input unit" if weights.dim() == 2 else "filter", file.path)
    folded = scale(weights, z, 0)
    state[f"{layer}.weight"] = folded.t().contiguous() if weights.dim() == 2 else folded
    bias = state.get(f"{layer}.bias")
    if weights.dim() == 4 and bias is not None:
        check_length(bias, weights.shape[0], f"{layer}.bias", "filter", file.path)
        state[f"{layer}.bias"] = scale(bias, z, 0)
    return group_of(layer, z, "arm")


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names that plain_networks uses."""
    renamed = {}
    for name, tensor in state.items():
        match = _BLOCK.fullmatch(name)
        prefix, rest = (f"layer{match['group']}.{match['index']}.", match["rest"]) if match else ("", name)
        layer, _, parameter = rest.rpartition(".")
        ours = f"{prefix}{_WIDE_RESNET.get(layer, layer)}.{parameter}" if layer else name
        renamed[ours] = tensor.t().contiguous() if rest == _DENSE else tensor
    return renamed


def _build(state: Mapping[str, Tensor], file: Candidate) -> tuple[Module, tuple[int, ...]]:
    from converters.formats.plain_networks import Mlp, lenet5_of, wide_resnet_of, widths_of_mlp

    try:
        if "convs.0.weight" in state:
            return lenet5_of(state)
        if "output.0.weight" in state:
            widths = widths_of_mlp(state, "output")
            return Mlp("output", widths, "output.0.bias" in state), (widths[0],)
        if "layer1.0.conv1.weight" in state:
            return wide_resnet_of(state)
    except (KeyError, IndexError, ValueError) as error:
        raise ModelFileError(f"{file.path}: its state dict lacks a parameter of its network ({error}).") from error
    raise ModelFileError(
        f"{file.path}: gates of an unknown network (first parameter {next(iter(state))}); "
        "known are ARMLeNet5, ARMMLP and ARMWideResNet. Load it in torch and convert the live module."
    )
