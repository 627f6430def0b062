"""What does the paper's objective add to the loss, and how large is the network expected to be?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from l0runtime.errors import NoGateError, OptionError, UnsupportedModelError
from l0runtime.gates.attached import AttachedGate
from l0runtime.gates.gate import Gate
from l0runtime.gates.layers import GatedConv2d, GatedLayer, GatedLinear


def gated_layers(model: nn.Module) -> dict[str, GatedLayer]:
    """The gated layers of a model by qualified name, in the order of its modules."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, GatedLinear | GatedConv2d)}


def gates_of(model: nn.Module) -> dict[str, Gate]:
    """All gates of a model, by the name of the layer or place they belong to, or their own where they stand alone."""
    layers = {id(layer.gate): name for name, layer in gated_layers(model).items()}
    gates: dict[str, Gate] = {}
    for name, module in model.named_modules():
        if isinstance(module, AttachedGate):
            gates[module.place.name] = module
        elif isinstance(module, Gate):
            gates[layers.get(id(module), name)] = module
    return gates


def kept_units(model: nn.Module) -> dict[str, tuple[int, int]]:
    """For each gate (named as by `gates_of`): units that it does not close by its evaluation rule, and units in all."""
    return {name: (gate.kept_count(), gate.size) for name, gate in gates_of(model).items()}


@dataclass(frozen=True)
class _Group:
    """One gate vector with what a closed gate of it removes: |g| parameters, and their squared norms, [n]."""

    gate: Gate
    size: float
    squared_norms: Callable[[], Tensor]


def _groups_of(model: nn.Module) -> dict[str, _Group]:
    groups: dict[str, _Group] = {}
    layers = gated_layers(model)
    for name, gate in gates_of(model).items():
        if isinstance(gate, AttachedGate):
            norms = partial(_attached_norms, model, gate)
            groups[name] = _Group(gate, gate.place.unit_parameters, norms)
        elif name in layers:
            groups[name] = _Group(gate, layers[name].group_size(), layers[name].group_squared_norms)
        else:
            raise UnsupportedModelError(
                f"PaperPenalty: gate {name} stands alone, so its number of parameters is unknown; "
                "use GatedLinear or GatedConv2d, or a penalty of your own."
            )
    return groups


def _attached_norms(model: nn.Module, gate: AttachedGate) -> Tensor:
    """Squared norms of the writing layers' parameters behind each attached gate, as trained (without the gates)."""
    total = torch.zeros(gate.size, device=gate.log_alpha.device)
    for point in gate.place.writers:
        layer, _, name = point.tensor.rpartition(".")
        module = model.get_submodule(layer)
        chain = getattr(module, "parametrizations", {})
        squares = (chain[name].original if name in chain else getattr(module, name)).square()
        if point.axis is None:
            total = total + squares.sum()
            continue
        rows = squares.movedim(point.axis, 0).flatten(1).sum(1) if squares.dim() > 1 else squares
        if point.index is None:
            total = total + rows
        else:
            index = torch.tensor(point.index, device=rows.device)
            total = total.index_add(0, index[index >= 0], rows[index >= 0])
    return total


class PaperPenalty:
    """The paper's penalty (1 / N) sum_g P(z_g != 0) (lambda |g| + wd / 2 ||w_g||^2), over all gate vectors.

    |g| counts the parameters of the layers that write a unit (which is gated by attach), or those of the gated layer.

    Args:
        model: a model with gated layers or attached gates.
        lambdas: strength per gate vector, in the order of `gates_of`, or one value for all. These are the values of the
            authors' code; the paper writes them divided by N ("lambda = 0.1 / N").
        examples: N, the number of training examples.
        weight_decay: wd above; the authors' code used 5e-4 (divided by N it is as good as none).
        detach_weight_decay: let the L2 term act on the weights alone. As in the paper (False) it also closes gates,
            and there it easily outweighs the L0 term.
        warm_up: calls over which the lambdas rise linearly to their values, while the weights learn what matters.
    Raises:
        NoGateError: the model has no gated layer.
        UnsupportedModelError: a gate stands alone, so nothing tells how many parameters |g| it removes.
        OptionError: as many lambdas as gated layers, or one, are needed; a negative one; examples < 1; warm_up < 0.
    """

    def __init__(
        self,
        model: nn.Module,
        lambdas: Sequence[float],
        examples: int,
        weight_decay: float = 0.0,
        detach_weight_decay: bool = True,
        warm_up: int = 0,
    ) -> None:
        layers = _groups_of(model)
        if not layers:
            raise NoGateError("PaperPenalty: the model has no gated layer; use attach, GatedLinear or GatedConv2d.")
        if len(lambdas) not in (1, len(layers)):
            raise OptionError(
                f"PaperPenalty: {len(lambdas)} lambdas for {len(layers)} gated layers "
                f"({', '.join(layers)}); give one, or one per layer."
            )
        if examples < 1:
            raise OptionError(f"PaperPenalty: examples is {examples}; expected the number of training examples.")
        if min(lambdas) < 0 or weight_decay < 0:
            raise OptionError("PaperPenalty: lambdas and weight_decay must not be negative.")
        if warm_up < 0:
            raise OptionError(f"PaperPenalty: warm_up is {warm_up}; expected a number of steps.")
        self.groups = list(layers.values())
        self.lambdas = list(lambdas) if len(lambdas) > 1 else [lambdas[0]] * len(layers)
        self.examples = examples
        self.weight_decay = weight_decay
        self.detach_weight_decay = detach_weight_decay
        self.warm_up, self.step = warm_up, 0

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.step = int(state["step"])

    def __call__(self) -> Tensor:
        """The penalty as a scalar tensor, to be added to the mean loss of a batch; call it once a step."""
        self.step += 1
        risen = min(1.0, self.step / self.warm_up) if self.warm_up else 1.0
        total = torch.zeros((), device=self.groups[0].gate.log_alpha.device)
        for group, strength in zip(self.groups, self.lambdas, strict=True):
            open_ = group.gate.probability_open()
            total = total + open_.sum() * (risen * strength * group.size)
            if self.weight_decay:
                factor = open_.detach() if self.detach_weight_decay else open_
                total = total + (factor * group.squared_norms()).sum() * (self.weight_decay / 2)
        return total / self.examples


@torch.no_grad()
def expected_l0(model: nn.Module) -> float:
    """Expected number of parameters that are not gated to zero, sum of P(z != 0) |g|; lone gates are left out."""
    layers = gated_layers(model).values()
    total = sum(float(layer.gate.probability_open().sum()) * layer.group_size() for layer in layers)
    attached = (gate for gate in gates_of(model).values() if isinstance(gate, AttachedGate))
    return total + sum(float(gate.probability_open().sum()) * gate.place.unit_parameters for gate in attached)
