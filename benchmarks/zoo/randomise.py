"""How does a model with random weights get statistics that make a test bite?

A freshly built model has BatchNorm statistics 0 and 1, biases 0, and often layers or layer scales that are zero: a
wrong removal would not show. Here BatchNorm statistics are measured on a random batch and then disturbed, all biases
and norm weights are random, and whatever is initialised to zero or next to it is randomised.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

_SMALL = 1e-3  # a layer scale of 1e-5 would hide its branch from any comparison


@torch.no_grad()
def randomise(model: nn.Module, inputs: tuple[Tensor, ...], seed: int) -> nn.Module:
    """Randomise `model` in place and return it in evaluation mode; `inputs` hold at least two samples."""
    torch.manual_seed(seed)
    for module in model.modules():
        # a weight that is computed from others (weight norm) cannot hold gates
        for name in list(module.parametrizations) if parametrize.is_parametrized(module) else ():  # type: ignore[arg-type]
            with torch.enable_grad():  # else the weight does not become a parameter
                parametrize.remove_parametrizations(module, name)
    norms = {id(p) for m in model.modules() if "Norm" in type(m).__name__ for p in m.parameters(recurse=False)}
    for name, parameter in model.named_parameters():
        leaf = name.rpartition(".")[2]
        if id(parameter) in norms:
            if leaf == "weight":
                parameter.uniform_(0.5, 1.5)
            elif parameter.numel() > 1:
                parameter.normal_(0.0, 0.3)
        elif leaf.endswith("bias") and parameter.ndim == 1:
            parameter.normal_(0.0, 0.1)
        elif parameter.is_floating_point() and parameter.numel() > 1 and float(parameter.abs().max()) <= _SMALL:
            # zero-initialised, or a layer scale next to zero
            if parameter.ndim == 1 or leaf in ("gamma", "layer_scale") or "scale" in leaf:
                parameter.uniform_(0.1, 0.4)
            else:
                parameter.normal_(0.0, 0.05)
    _measure_batch_norms(model, inputs)
    return model.eval()


def _measure_batch_norms(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Running statistics of a random batch, disturbed.

    The mean moves by 0.3 standard deviations at random, the variance by a factor between 0.5 and 2.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        return
    model.eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.train()
        layer.momentum = 1.0
    model(*inputs)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.eval()
        layer.momentum = momentum
        mean, variance = layer.running_mean, layer.running_var
        assert mean is not None
        assert variance is not None
        # a few samples at 1 x 1 pixels can have a variance near zero, which would amplify rounding without bound
        variance.clamp_(min=0.1 * float(variance.mean()) + 1e-3)
        mean.add_(0.3 * variance.sqrt() * torch.randn_like(mean))
        variance.mul_(torch.empty_like(variance).uniform_(0.5, 2.0))
