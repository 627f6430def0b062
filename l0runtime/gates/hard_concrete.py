"""How is a gate distributed while training, and how likely is it to be open?

A hard-concrete gate is a binary concrete variable, stretched from (0, 1) to (gamma, zeta) and clipped to [0, 1], so
that both 0 and 1 have positive probability and the rest has a density:

    s = sigmoid((log u - log(1 - u) + log_alpha) / beta),   u ~ Uniform(0, 1)
    z = min(1, max(0, s * (zeta - gamma) + gamma))

Source: Louizos, Welling & Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018, section 2.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from l0runtime.errors import GateParameterError

_NOISE_MARGIN = 1e-6  # u stays this far from 0 and 1, where its logit is infinite


@dataclass(frozen=True)
class HardConcrete:
    """The constants of a hard-concrete distribution; its location log_alpha is passed to each method.

    Args:
        beta: temperature, > 0; smaller is closer to a coin toss.
        gamma: lower end of the stretched interval, < 0.
        zeta: upper end of the stretched interval, > 1.
    Raises:
        GateParameterError: a constant outside its range, where P(z = 0) or P(z = 1) would be 0 or meaningless.
    """

    beta: float = 2 / 3
    gamma: float = -0.1
    zeta: float = 1.1

    def __post_init__(self) -> None:
        checks = (
            ("beta", self.beta, 0 < self.beta < math.inf, "a finite number above 0"),
            ("gamma", self.gamma, -math.inf < self.gamma < 0, "a finite number below 0, or no gate can close"),
            ("zeta", self.zeta, 1 < self.zeta < math.inf, "a finite number above 1, or no gate can open fully"),
        )
        for name, value, is_valid, expected in checks:
            if not is_valid:
                raise GateParameterError(f"HardConcrete: {name} is {value}; expected {expected}.")

    def draw_noise(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Logistic noise log u - log(1 - u), of the given shape and of the dtype and device of `like`."""
        uniform = torch.empty(shape, dtype=like.dtype, device=like.device)
        uniform.uniform_(_NOISE_MARGIN, 1 - _NOISE_MARGIN, generator=generator)
        return torch.logit(uniform)

    def sample(self, log_alpha: Tensor, noise: Tensor) -> Tensor:
        """Gate values z in [0, 1], differentiable in log_alpha (reparametrised).

        Args:
            log_alpha: location of each gate, shape [n].
            noise: logistic noise, broadcastable with log_alpha, e.g. [n] or [batch, n].
        """
        concrete = torch.sigmoid((noise + log_alpha) / self.beta)
        return (concrete * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)

    def cumulative(self, value: float, log_alpha: Tensor) -> Tensor:
        """P(z <= value) for 0 <= value < 1; at 0 it includes the mass at 0, so it is P(z = 0).

        sigmoid(beta * logit((value - gamma) / (zeta - gamma)) - log_alpha).
        """
        if not 0 <= value < 1:
            raise GateParameterError(f"HardConcrete.cumulative: value is {value}; expected 0 <= value < 1.")
        stretched = (value - self.gamma) / (self.zeta - self.gamma)
        return torch.sigmoid(self.beta * (math.log(stretched) - math.log1p(-stretched)) - log_alpha)

    def probability_open(self, log_alpha: Tensor) -> Tensor:
        """Probability that a gate is not exactly zero, sigmoid(log_alpha - beta * log(-gamma / zeta)).

        Args:
            log_alpha: location of each gate, shape [n], dimensionless.
        Source: Louizos, Welling & Kingma 2018, equation 12.
        """
        return torch.sigmoid(log_alpha - self.beta * math.log(-self.gamma / self.zeta))

    def probability_fully_open(self, log_alpha: Tensor) -> Tensor:
        """Probability that a gate is exactly one, sigmoid(log_alpha - beta * log((1 - gamma) / (zeta - 1)))."""
        return torch.sigmoid(log_alpha - self.beta * math.log((1 - self.gamma) / (self.zeta - 1)))

    def log_density(self, value: Tensor, log_alpha: Tensor) -> Tensor:
        """Log density of z at values strictly between 0 and 1 (0 and 1 carry point masses instead).

        With s = (z - gamma) / (zeta - gamma), the concrete density beta * a * s^(-beta-1) * (1-s)^(-beta-1) /
        (a * s^-beta + (1-s)^-beta)^2 of a = exp(log_alpha), divided by zeta - gamma.

        Args:
            value: points in (0, 1), broadcastable with log_alpha.
            log_alpha: location of each gate.
        """
        width = self.zeta - self.gamma
        s = (value - self.gamma) / width
        log_s, log_rest = torch.log(s), torch.log1p(-s)
        denominator = torch.logaddexp(log_alpha - self.beta * log_s, -self.beta * log_rest)
        numerator = math.log(self.beta) + log_alpha - (self.beta + 1) * (log_s + log_rest)
        return numerator - 2 * denominator - math.log(width)
