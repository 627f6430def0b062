"""How does a checkpoint of the paper's own code (AMLab-Amsterdam/L0_regularization) become a gated model?

`runs/<name>/checkpoint.pth.tar` and `model_best.pth.tar`: a dict with `state_dict` and, where the training kept a
moving average, `avg_params` (a list in the order of parameters()), `steps_ema` and `beta_ema`. The paper evaluates the
average, avg / (1 - beta^steps); the option parameters=last takes the last step's instead.

Checked on real files of L0LeNet5 (no average) and L0MLP (with one); L0WideResNet only on files made by hand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.live_module import from_module
from converters.sources import Candidate, GatedModel, SourceOptions
from converters.torch_files import check_plain
from l0runtime.errors import ModelFileError, OptionError, UnsupportedModelError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

# theirs: ours. Dense weights are stored [in, out], ours [out, in].
_GATED = {"weights": "weight", "qz_loga": "gate.log_alpha", "bias": "bias"}
_LENET5 = {"convs.0": "conv1", "convs.3": "conv2", "fcs.0": "fc1", "fcs.2": "fc2"}
_WIDE_RESNET = {
    "conv1.weight": "conv1.weight",
    "bn": "bn",
    "fcout.weight": "fc.weight",
    "fcout.bias": "fc.bias",
    "bn1": "bn1",
    "conv1.weights": "conv1.weight",
    "conv1.qz_loga": "conv1.gate.log_alpha",
    "bn2": "bn2",
    "conv2.weight": "conv2.weight",
    "convShortcut.weight": "shortcut.weight",
}
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_BLOCK = re.compile(r"block(?P<group>[123])\.layer\.(?P<index>\d+)\.(?P<rest>.+)")
_GROUPS = 3
_LENET_IMAGE = (1, 28, 28)
_CIFAR_IMAGE = (3, 32, 32)
_CHOICES = ("average", "last")


class AmlabCheckpoint:
    """L0LeNet5, L0MLP and L0WideResNet."""

    name = "amlab"
    description = "checkpoint.pth.tar of the paper's own code, AMLab L0_regularization"

    def recognise(self, file: Candidate) -> bool:
        content = file.torch_content
        return isinstance(content, Mapping) and _has_gates(content.get("state_dict"))

    def load(self, file: Candidate, options: SourceOptions) -> GatedModel:
        import torch

        from converters.torch_files import read_torch_file, tensors_of

        if options.model is not None:
            raise OptionError(f"{file.path}: the parameters' names say which network it is; leave out the model.")
        unknown = set(options.extra) - {"parameters"}
        choice = options.extra.get("parameters")
        if unknown or choice not in (None, *_CHOICES):
            raise OptionError(
                f"{file.path}: format {self.name} has one option, parameters=average or parameters=last; "
                f"found {', '.join(f'{key}={value}' for key, value in options.extra.items())}."
            )
        content = file.torch_content if file.torch_content is not None else read_torch_file(file.path)
        if not isinstance(content, Mapping) or not _has_gates(content.get("state_dict")):
            raise ModelFileError(f"{file.path}: holds no state_dict with gates (qz_loga), as AMLab's code writes it.")
        state = tensors_of(content["state_dict"], file.path)
        state, note = _choose_parameters(state, content, choice, file.path)
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        module, shape, renamed = _build(state, file.path)
        _load(module, renamed, file.path)
        example = options.example_inputs or (torch.zeros(1, *shape),)
        return from_module(module, example, format=self.name, notes=[note])


SOURCE = AmlabCheckpoint()


def _has_gates(state: object) -> bool:
    return isinstance(state, Mapping) and any(str(name).endswith(".qz_loga") for name in state)


def _choose_parameters(
    state: dict[str, Tensor], content: Mapping[str, Any], choice: str | None, path: Path
) -> tuple[dict[str, Tensor], str]:
    """The moving average where there is one, unless the last step's parameters are asked for."""
    import torch

    averages, decay, steps = content.get("avg_params"), content.get("beta_ema", 0), content.get("steps_ema", 0)
    if averages is None or not decay:
        if choice == "average":
            raise OptionError(f"{path}: parameters=average, but the file holds no average; leave the option out.")
        return state, "parameters of the last step; the file holds no moving average"
    if choice == "last":
        return state, "parameters of the last step, not their moving average"
    names = [name for name in state if not name.endswith(_BUFFERS)]
    if not isinstance(averages, list) or [getattr(a, "shape", None) for a in averages] != [
        state[name].shape for name in names
    ]:
        raise ModelFileError(
            f"{path}: avg_params does not match the {len(names)} parameters of state_dict in number and shape. "
            "The file is damaged; parameters=last reads the parameters of the last step."
        )
    for name, average in zip(names, averages, strict=True):
        check_plain(average, f"the average of {name}", path)
    is_known = all(isinstance(number, int | float) for number in (decay, steps))
    correction = 1 - float(decay) ** float(steps) if is_known and 0 < decay < 1 and steps > 0 else 0.0
    if not 0 < correction <= 1:
        raise ModelFileError(f"{path}: beta_ema is {decay} and steps_ema {steps}; expected 0 < beta < 1 and steps > 0.")
    averaged = {name: (a.double() / correction).to(a.dtype) for name, a in zip(names, averages, strict=True)}
    assert all(isinstance(tensor, torch.Tensor) for tensor in averaged.values())
    return state | averaged, f"moving average of the parameters (beta {decay}, {int(steps)} steps)"


def _build(state: Mapping[str, Tensor], path: Path) -> tuple[Module, tuple[int, ...], dict[str, Tensor]]:
    """The network that the names belong to, the shape of one input, and the parameters under our names."""
    from l0runtime.gates.lenet import LeNet5, LeNet300
    from l0runtime.gates.wide_resnet import WideResNet

    try:
        if "convs.0.weights" in state:
            filters = [state[f"convs.{n}.weights"].shape[0] for n in (0, 3)]
            hidden, classes = state["fcs.2.weights"].shape
            return LeNet5(filters, hidden, classes), _LENET_IMAGE, _rename_layers(state, _LENET5)
        if "output.0.weights" in state:
            layers = [f"output.{2 * n}" for n in range(sum(name.endswith(".weights") for name in state))]
            widths = [
                *(state[f"{layer}.weights"].shape[0] for layer in layers),
                state[f"{layers[-1]}.weights"].shape[1],
            ]
            # nn.Flatten comes first in ours, so each index is one higher
            table = {layer: f"layers.{2 * n + 1}" for n, layer in enumerate(layers)}
            return LeNet300(widths[0], widths[1:-1], widths[-1]), (widths[0],), _rename_layers(state, table)
        if "block1.layer.0.conv1.weights" in state:
            per_group = 1 + max(int(match["index"]) for name in state if (match := _BLOCK.fullmatch(name)))
            classes = state["fcout.weight"].shape[1]
            widen = state["fcout.weight"].shape[0] // 64
            module = WideResNet(depth=4 + 6 * per_group, widen=widen, classes=classes)
            return module, _CIFAR_IMAGE, _rename_wide_resnet(state, per_group)
    except (KeyError, IndexError, ValueError) as error:
        raise ModelFileError(f"{path}: its state_dict lacks a parameter of its network ({error}).") from error
    raise UnsupportedModelError(
        f"{path}: gates of an unknown network (first parameter {next(iter(state))}); "
        "known are L0LeNet5, L0MLP and L0WideResNet. Load it in torch and convert the live module."
    )


def _rename_layers(state: Mapping[str, Tensor], table: Mapping[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        layer, _, parameter = name.rpartition(".")
        ours = f"{table[layer]}.{_GATED[parameter]}" if layer in table and parameter in _GATED else name
        renamed[ours] = tensor.t() if parameter == "weights" and tensor.dim() == 2 else tensor
    return renamed


def _rename_wide_resnet(state: Mapping[str, Tensor], per_group: int) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        match = _BLOCK.fullmatch(name)
        prefix, rest = "", name
        if match is not None:
            prefix, rest = f"blocks.{(int(match['group']) - 1) * per_group + int(match['index'])}.", match["rest"]
        layer, _, parameter = rest.rpartition(".")
        ours = _WIDE_RESNET.get(rest) or (
            f"{_WIDE_RESNET[layer]}.{parameter}" if layer in _WIDE_RESNET and parameter in _BATCH_NORM else rest
        )
        renamed[prefix + ours] = tensor.t() if rest == "fcout.weight" else tensor
    return renamed


def _load(module: Module, renamed: Mapping[str, Tensor], path: Path) -> None:
    """Copy the parameters; every one must be there, fit, and be used."""
    expected = {name: tensor for name, tensor in module.state_dict().items() if not name.endswith("_extra_state")}
    optional = {name for name in expected if name.endswith("num_batches_tracked")}
    missing, left_over = sorted(expected.keys() - renamed.keys() - optional), sorted(renamed.keys() - expected.keys())
    if missing or left_over:
        raise ModelFileError(
            f"{path}: parameters do not fit {type(module).__name__}: missing {', '.join(missing[:3]) or 'none'}; "
            f"left over {', '.join(left_over[:3]) or 'none'}."
        )
    for name, tensor in renamed.items():
        if tensor.shape != expected[name].shape:
            raise ModelFileError(
                f"{path}: {name} has shape {list(tensor.shape)}; {type(module).__name__} expects "
                f"{list(expected[name].shape)}."
            )
        expected[name].copy_(tensor)
