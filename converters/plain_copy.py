"""What does a gated or masked module look like once its gates and masks are multiplied into its weights?"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from converters.formats.folding import scale
from l0runtime.gates.attached import gates_in, own_class
from l0runtime.gates.attaching import detach
from l0runtime.gates.gate import Gate
from l0runtime.gates.layers import GatedConv2d, GatedLayer, GatedLinear
from l0runtime.gates.registry import architecture_name

Values = Callable[[Gate], Tensor]


class FixedGate(nn.Module):
    """What is left of a gate that stands alone: its values, as a constant."""

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values.detach().clone())

    def forward(self, x: Tensor, dim: int = 1) -> Tensor:
        """x times the values along axis `dim`."""
        shape = [1] * x.dim()
        shape[dim] = -1
        return x * self.values.reshape(shape)


def plain_copy(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], values: Values = Gate.values
) -> nn.Module:
    """A copy in eval mode that computes the same, of plain layers: a fixed gate is a factor of rows or columns.

    Covered are the gated layers of l0runtime.gates, gates that `attach` put in, masks of torch.nn.utils.prune and
    other parametrisations of torch, which become plain parameters. Gates of other code stay as they are.

    Args:
        args, kwargs: example inputs.
        values: which value a gate has.
    """
    _run_once(module, args, kwargs)
    plain = copy.deepcopy(module).eval()
    with torch.no_grad():
        attached = gates_in(plain)
        if attached is not None:
            for gate in attached:
                gate.freeze(values(gate))
            detach(plain, fold=True)
        for child in list(plain.modules()):
            _bake(child)
        if isinstance(plain, GatedLinear | GatedConv2d | Gate):
            plain = _ungated(plain, values)
        for parent in list(plain.modules()):
            for name, child in list(parent.named_children()):
                if type(child) in (GatedLinear, GatedConv2d, Gate):
                    setattr(parent, name, _ungated(child, values))
    if architecture_name(plain) is not None and hasattr(plain, "config"):
        del plain.config  # it describes the gated network at its full widths
    return plain


def _run_once(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Without gradients, after which the masked weights of torch.nn.utils.prune can be copied."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module(*args, **kwargs)
    finally:
        for child, training in modes:
            child.training = training


def _bake(module: nn.Module) -> None:
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
    if parametrize.is_parametrized(module):
        own_class(module)
        for name in list(module.parametrizations):  # type: ignore[arg-type]
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def _ungated(layer: nn.Module, values: Values) -> nn.Module:
    if isinstance(layer, Gate):
        return FixedGate(values(layer))
    assert isinstance(layer, GatedLinear | GatedConv2d)
    z = values(layer.gate)
    plain = _plain_layer(layer)
    plain.weight.copy_(_scaled_weight(layer, z))
    if plain.bias is not None and layer.bias is not None:
        gated = layer.side == "output" and layer.gate_bias
        plain.bias.copy_(scale(layer.bias, z, 0) if gated else layer.bias)
    plain.weight.requires_grad_(layer.weight.requires_grad)
    if plain.bias is not None and layer.bias is not None:
        plain.bias.requires_grad_(layer.bias.requires_grad)
    return plain.train(layer.training)


def _scaled_weight(layer: GatedLayer, z: Tensor) -> Tensor:
    if layer.side == "output":
        return scale(layer.weight, z, 0)
    groups = layer.groups if isinstance(layer, GatedConv2d) else 1
    if groups == 1:
        return scale(layer.weight, z, 1)
    # input channel g * (in / groups) + j meets column j of the filters of group g
    blocks = layer.weight.double().reshape(groups, -1, *layer.weight.shape[1:])
    factor = z.double().reshape(groups, 1, -1, 1, 1)
    return (blocks * factor).reshape(layer.weight.shape).to(layer.weight.dtype)


def _plain_layer(layer: GatedLayer) -> nn.Linear | nn.Conv2d:
    made: dict[str, Any] = {"bias": layer.bias is not None, "device": layer.weight.device, "dtype": layer.weight.dtype}
    if isinstance(layer, GatedLinear):
        return nn.Linear(layer.in_features, layer.out_features, **made)
    return nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        layer.groups,
        padding_mode=layer.padding_mode,
        **made,
    )
