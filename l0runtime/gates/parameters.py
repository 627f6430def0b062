"""Which parameters are gates, and how must an optimizer treat them?"""

from __future__ import annotations

from typing import Any

from torch import nn

from l0runtime.errors import OptionError
from l0runtime.gates.gate import Gate


def param_groups(
    model: nn.Module, learning_rate: float, gate_learning_rate: float | None = None, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Two parameter groups for any torch optimizer: the weights, and the gates with a rate of their own and no decay.

    A gate must travel far: from its initial log_alpha (2.94 for a drop rate of 0.05) to its closing threshold (-2.40)
    in the steps of a run. Adam moves it by at most about its learning rate a step, so 0.02 to 0.1 is usual where the
    weights have 0.001. Weight decay would pull log_alpha to 0, where a gate is undecided.

    Args:
        model: with gates of any kind.
        learning_rate: of the weights.
        gate_learning_rate: of log_alpha, None for the weights'.
        weight_decay: of the weights; none is applied to gates.
    Raises:
        OptionError: a learning rate is not positive, or the weight decay is negative.
    """
    gate_rate = learning_rate if gate_learning_rate is None else gate_learning_rate
    if learning_rate <= 0 or gate_rate <= 0 or weight_decay < 0:
        raise OptionError(
            f"param_groups: expected positive learning rates and weight_decay >= 0; found {learning_rate}, {gate_rate} "
            f"and {weight_decay}."
        )
    gates = {id(module.log_alpha) for module in model.modules() if isinstance(module, Gate)}
    weights = [parameter for parameter in model.parameters() if id(parameter) not in gates]
    chosen = [parameter for parameter in model.parameters() if id(parameter) in gates]
    return [
        {"params": weights, "lr": learning_rate, "weight_decay": weight_decay},
        {"params": chosen, "lr": gate_rate, "weight_decay": 0.0},
    ]
