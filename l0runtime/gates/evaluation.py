"""Which value does a trained gate take once nothing is random any more?

Three rules are in use, and they are incompatible: the same 500 gates with log_alpha ~ N(-2, 1.5) keep 298, 193 or 216
units. So a gate stores its rule beside its constants and nobody has to guess.

    paper   clip(sigmoid(log_alpha) (zeta - gamma) + gamma)         Louizos et al. 2018, Voita et al. 2019
    median  clip(sigmoid(log_alpha / beta) (zeta - gamma) + gamma)  Gallego-Posada et al. 2022
    top-k   m = sigmoid(0.8 log_alpha / beta), the round(n - E[L0]) smallest m set to 0
                                                                    Wang et al. 2020 (FLOP), CoFi, LLM-Shearing
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from l0runtime.errors import GateParameterError
from l0runtime.gates.hard_concrete import HardConcrete

EvaluationRule = Literal["paper", "median", "top-k"]
RULES: tuple[EvaluationRule, ...] = get_args(EvaluationRule)
_TOP_K_SLOPE = 0.8  # FLOP's "magical number", kept by everyone who copied its code


def check_rule(rule: str) -> EvaluationRule:
    """Return the rule, or raise GateParameterError when it is none of the three."""
    for known in RULES:
        if rule == known:
            return known
    raise GateParameterError(f"evaluation rule is {rule!r}; expected one of {', '.join(RULES)}.")


def closing_threshold(constants: HardConcrete, rule: EvaluationRule) -> float:
    """The largest log_alpha at which the gate is exactly 0; -2.398 (paper) and -1.599 (median) by default.

    Raises:
        GateParameterError: top-k closes gates by rank, so it has no threshold.
    """
    return math.log(-constants.gamma / constants.zeta) * _scale_of(constants, rule)


def opening_threshold(constants: HardConcrete, rule: EvaluationRule) -> float:
    """The smallest log_alpha at which the gate is exactly 1; 2.398 (paper) and 1.599 (median) by default."""
    return math.log((1 - constants.gamma) / (constants.zeta - 1)) * _scale_of(constants, rule)


def evaluate_gates(log_alpha: Tensor, constants: HardConcrete, rule: EvaluationRule) -> Tensor:
    """Deterministic gate values in [0, 1], shape [n], exactly 0 for every closed gate.

    Made of tensor operations only, so torch.export traces it, and exporters fold it into a constant.
    """
    if rule == "top-k":
        return _evaluate_by_rank(log_alpha, constants)
    concrete = torch.sigmoid(log_alpha / _scale_of(constants, rule))
    value = (concrete * (constants.zeta - constants.gamma) + constants.gamma).clamp(0, 1)
    # The comparison decides, not the rounding of the formula: every implementation then closes the same gates.
    return torch.where(log_alpha <= closing_threshold(constants, rule), torch.zeros_like(value), value)


def _evaluate_by_rank(log_alpha: Tensor, constants: HardConcrete) -> Tensor:
    magnitude = torch.sigmoid(_TOP_K_SLOPE * log_alpha / constants.beta)
    expected_open = constants.probability_open(log_alpha.double()).sum()
    closed_count = torch.round(log_alpha.numel() - expected_open)
    # Rank by counting, [n, n]: exporters know no stable sort. Equal gates rank in the order of their index.
    index = torch.arange(log_alpha.numel(), device=log_alpha.device)
    row, column = log_alpha.unsqueeze(1), log_alpha.unsqueeze(0)
    is_before = (column < row) | ((column == row) & (index.unsqueeze(0) < index.unsqueeze(1)))
    rank = is_before.sum(1)
    return torch.where(rank < closed_count, torch.zeros_like(magnitude), magnitude)


def _scale_of(constants: HardConcrete, rule: EvaluationRule) -> float:
    if rule == "top-k":
        raise GateParameterError("the top-k rule closes gates by rank; it has no threshold on log_alpha.")
    return constants.beta if rule == "median" else 1.0
