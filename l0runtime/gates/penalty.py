"""What does the paper's objective add to the loss, and how large is the network expected to be?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from l0runtime.errors import NoGateError, OptionError
from l0runtime.gates.layers import GatedConv2d, GatedLayer, GatedLinear


def gated_layers(model: nn.Module) -> dict[str, GatedLayer]:
    """The gated layers of a model by qualified name, in the order of its modules."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, GatedLinear | GatedConv2d)}


def kept_units(model: nn.Module) -> dict[str, tuple[int, int]]:
    """For each gated layer: units whose gate is not exactly 0 by its evaluation rule, and units in all."""
    return {name: (layer.gate.kept_count(), layer.gate.size) for name, layer in gated_layers(model).items()}


class PaperPenalty:
    """The paper's penalty (1 / N) sum_g P(z_g != 0) (lambda |g| + wd / 2 ||w_g||^2), over all gated layers.

    Args:
        model: a model with gated layers.
        lambdas: strength per layer, in the order of `gated_layers`, or one value for all. These are the values of the
            authors' code; the paper writes them divided by N ("lambda = 0.1 / N").
        examples: N, the number of training examples.
        weight_decay: wd above; the authors' code used 5e-4 (divided by N it is as good as none).
        detach_weight_decay: let the L2 term act on the weights alone. As in the paper (False) it also closes gates,
            and there it easily outweighs the L0 term.
    Raises:
        NoGateError: the model has no gated layer.
        OptionError: as many lambdas as gated layers, or one, are needed; a negative one; examples < 1.
    """

    def __init__(
        self,
        model: nn.Module,
        lambdas: Sequence[float],
        examples: int,
        weight_decay: float = 0.0,
        detach_weight_decay: bool = True,
    ) -> None:
        layers = gated_layers(model)
        if not layers:
            raise NoGateError("PaperPenalty: the model has no gated layer; use GatedLinear or GatedConv2d.")
        if len(lambdas) not in (1, len(layers)):
            raise OptionError(
                f"PaperPenalty: {len(lambdas)} lambdas for {len(layers)} gated layers "
                f"({', '.join(layers)}); give one, or one per layer."
            )
        if examples < 1:
            raise OptionError(f"PaperPenalty: examples is {examples}; expected the number of training examples.")
        if min(lambdas) < 0 or weight_decay < 0:
            raise OptionError("PaperPenalty: lambdas and weight_decay must not be negative.")
        self.layers = list(layers.values())
        self.lambdas = list(lambdas) if len(lambdas) > 1 else [lambdas[0]] * len(layers)
        self.examples = examples
        self.weight_decay = weight_decay
        self.detach_weight_decay = detach_weight_decay

    def __call__(self) -> Tensor:
        """The penalty as a scalar tensor, to be added to the mean loss of a batch."""
        total = torch.zeros((), device=self.layers[0].weight.device)
        for layer, strength in zip(self.layers, self.lambdas, strict=True):
            open_ = layer.gate.probability_open()
            total = total + open_.sum() * (strength * layer.group_size())
            if self.weight_decay:
                factor = open_.detach() if self.detach_weight_decay else open_
                total = total + (factor * layer.group_squared_norms()).sum() * (self.weight_decay / 2)
        return total / self.examples


@torch.no_grad()
def expected_l0(model: nn.Module) -> float:
    """Expected number of gated parameters that are not zero: sum over gates of P(z != 0) |g|."""
    layers = gated_layers(model).values()
    return sum(float(layer.gate.probability_open().sum()) * layer.group_size() for layer in layers)
