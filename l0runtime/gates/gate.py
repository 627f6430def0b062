"""What is a gate as a torch module: its parameter, its random and its final values, its place in a checkpoint?"""

from __future__ import annotations

import json
import math
from typing import Final

import torch
from torch import Tensor, nn

from l0runtime.errors import GateParameterError
from l0runtime.gates.evaluation import EvaluationRule, check_rule, evaluate_gates
from l0runtime.gates.hard_concrete import HardConcrete

LOG_ALPHA_LIMIT: Final = math.log(100.0)  # 4.605: beyond it a gate's gradient vanishes, so the paper's code clamps here
_INITIAL_SPREAD = 0.01  # standard deviation of log_alpha at the start, as in the paper's code


class Gate(nn.Module):
    """n hard-concrete gates that multiply one axis of a tensor: random while training, a fixed function afterwards.

    In `eval()` the values are a deterministic function of log_alpha (see evaluation.py), exactly 0 for a closed gate.
    The constants and the rule travel in the state dict, as the extra state: a uint8 tensor holding JSON.

    Args:
        size: number of gates n, >= 1.
        drop_rate: d in (0, 1) of the authors' initialisation, log_alpha ~ N(log((1 - d) / d), 0.01).
        constants: beta, gamma and zeta of the distribution.
        rule: which evaluation rule turns log_alpha into the final value.
        per_example: draw one sample for each example of a batch rather than one for the whole batch.
    Raises:
        GateParameterError: size < 1, drop_rate outside (0, 1), or an unknown rule.
    """

    def __init__(
        self,
        size: int,
        *,
        drop_rate: float = 0.5,
        constants: HardConcrete | None = None,
        rule: EvaluationRule = "paper",
        per_example: bool = False,
    ) -> None:
        super().__init__()
        if size < 1:
            raise GateParameterError(f"Gate: size is {size}; expected at least 1 gate.")
        if not 0 < drop_rate < 1:
            raise GateParameterError(f"Gate: drop_rate is {drop_rate}; expected a number strictly between 0 and 1.")
        self.size = size
        self.drop_rate = drop_rate
        self.constants = constants or HardConcrete()
        self.rule: EvaluationRule = check_rule(rule)
        self.per_example = per_example
        self.log_alpha = nn.Parameter(torch.empty(size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw log_alpha anew, around the logit of 1 - drop_rate."""
        nn.init.normal_(self.log_alpha, math.log((1 - self.drop_rate) / self.drop_rate), _INITIAL_SPREAD)

    def forward(self, x: Tensor, dim: int = 1) -> Tensor:
        """Multiply x by the gates along axis `dim`, whose length must be `size`; axis 0 is the batch.

        Raises:
            GateParameterError: the axis has another length, or it is the batch and samples are per example.
        """
        if x.shape[dim] != self.size:
            raise GateParameterError(
                f"Gate: axis {dim} of the input has length {x.shape[dim]}; expected {self.size}, the number of gates."
            )
        return x * self.broadcast(self.draw(x.shape[0]), x.dim(), dim)

    def draw(self, batch: int) -> Tensor:
        """Gate values for one forward pass: a random [batch, n] or [n] while training, the final [n] in eval()."""
        if not self.training:
            return self.values()
        shape = (batch, self.size) if self.per_example else (self.size,)
        return self.constants.sample(self.log_alpha, self.constants.draw_noise(shape, self.log_alpha))

    def broadcast(self, z: Tensor, rank: int, dim: int) -> Tensor:
        """Reshape gate values [n] or [batch, n] so that they multiply axis `dim` of a tensor with `rank` axes."""
        dim = dim % rank
        shape = [1] * rank
        shape[dim] = self.size
        if z.dim() == 2:
            if dim == 0:
                raise GateParameterError("Gate: per-example samples need a batch axis; gate another axis than 0.")
            shape[0] = z.shape[0]
        return z.reshape(shape)

    def values(self) -> Tensor:
        """Final gate values in [0, 1] by the evaluation rule, shape [n], differentiable where 0 < z < 1."""
        return evaluate_gates(self.log_alpha, self.constants, self.rule)

    def closed(self) -> Tensor:
        """Which gates are exactly 0 by the evaluation rule, bool [n]."""
        with torch.no_grad():
            return self.values() == 0

    def kept_count(self) -> int:
        """Number of gates that are not exactly 0."""
        return self.size - int(self.closed().sum())

    def probability_open(self) -> Tensor:
        """P(z != 0) of each gate under the training distribution, shape [n]."""
        return self.constants.probability_open(self.log_alpha)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep log_alpha within +-log(100), where its gradient has not vanished; call after each optimizer step."""
        self.log_alpha.clamp_(-LOG_ALPHA_LIMIT, LOG_ALPHA_LIMIT)

    def get_extra_state(self) -> Tensor:
        """Constants and rule as a uint8 tensor of JSON, which safetensors can hold and `.half()` cannot round."""
        c = self.constants
        text = json.dumps({"beta": c.beta, "gamma": c.gamma, "zeta": c.zeta, "rule": self.rule})
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take constants and rule from a checkpoint.

        Raises:
            GateParameterError: the state is no JSON of the four fields, or a field has no meaning.
        """
        try:
            fields = json.loads(bytes(state.to(torch.uint8).cpu().tolist()).decode())
            constants = HardConcrete(float(fields["beta"]), float(fields["gamma"]), float(fields["zeta"]))
            rule = str(fields["rule"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, GateParameterError):
                raise
            raise GateParameterError(
                "Gate: the stored constants are unreadable; expected JSON with beta, gamma, zeta and rule. "
                "Save the checkpoint again."
            ) from error
        self.constants, self.rule = constants, check_rule(rule)

    def extra_repr(self) -> str:
        return f"{self.size}, rule={self.rule!r}, per_example={self.per_example}"
