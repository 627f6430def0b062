"""How does a gate look at its input, and decide for each sample whether a block runs?

A small network on pooled features gives a logit per sample; what becomes of it is random while training and a fixed
function afterwards, exactly 0 for samples that skip:

    hard-concrete   training  z ~ HardConcrete(logit)            evaluation  the gate's evaluation rule, in [0, 1]
    gumbel          training  z = 1[logit + noise > 0], with the gradient of sigmoid((logit + noise) / temperature)
                                                                 evaluation  1[logit > 0]

The noise is logistic, the difference of two Gumbel variables: `gumbel` is the straight-through Gumbel-softmax of two
logits (Jang et al. 2017), of which only the difference matters; ConvNet-AIG (Veit & Belongie 2018) gates so.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from l0runtime.errors import GateParameterError
from l0runtime.gates.evaluation import EvaluationRule, check_rule, closing_threshold, evaluate_gates
from l0runtime.gates.hard_concrete import HardConcrete

GateKind = Literal["hard-concrete", "gumbel"]
KINDS: tuple[GateKind, ...] = get_args(GateKind)
_LAST_LAYER_SPREAD = 1e-2  # the first decisions depend on the bias alone, nearly


@dataclass(frozen=True)
class Decisions:
    """What a gate decided for one training batch.

    Args:
        values: gate values, [batch], with a gradient.
        probabilities: P(the block runs) of each sample, [batch], with a gradient.
        settled: 1 for the samples whose block would run in eval(), else 0, [batch], with that gradient too.
    """

    values: Tensor
    probabilities: Tensor
    settled: Tensor


class ConditionalGate(nn.Module):
    """Decides per sample whether a block runs: [batch, features, ...] or [batch, length, features] -> [batch].

    Args:
        features: channels of an image [batch, features, h, w], or width of a sequence [batch, length, features] or of
            a vector [batch, features].
        hidden: width of the hidden layer; 0 for none.
        kind: "hard-concrete" or "gumbel".
        initial_rate: share of the samples for which the block runs before training, in (0, 1).
        temperature: of the straight-through gradient; a hard-concrete gate has it in `constants`.
        constants: of the hard-concrete distribution.
        rule: "median" runs the block where training does so more often than not; "paper" runs it more often.
    Raises:
        GateParameterError: an argument outside its range.
    """

    def __init__(
        self,
        features: int,
        *,
        hidden: int = 16,
        kind: GateKind = "gumbel",
        initial_rate: float = 0.85,
        temperature: float = 1.0,
        constants: HardConcrete | None = None,
        rule: EvaluationRule = "median",
    ) -> None:
        super().__init__()
        closing_threshold(constants or HardConcrete(), rule)  # refuses top-k: ranks would depend on the batch
        if features < 1 or hidden < 0:
            raise GateParameterError(
                f"ConditionalGate: features is {features} and hidden is {hidden}; expected at least 1 and 0."
            )
        if not 0 < initial_rate < 1:
            raise GateParameterError(
                f"ConditionalGate: initial_rate is {initial_rate}; expected a number strictly between 0 and 1."
            )
        if not 0 < temperature < math.inf:
            raise GateParameterError(f"ConditionalGate: temperature is {temperature}; expected a number above 0.")
        self.kind: GateKind = _check_kind(kind)
        self.temperature = temperature
        self.constants = constants or HardConcrete()
        self.rule: EvaluationRule = rule
        self.hidden = nn.Linear(features, hidden) if hidden else None
        self.last = nn.Linear(hidden or features, 1)
        self._decisions: Decisions | None = None
        nn.init.normal_(self.last.weight, std=_LAST_LAYER_SPREAD)
        nn.init.constant_(self.last.bias, math.log(initial_rate / (1 - initial_rate)) + self._even_logit())

    def _even_logit(self) -> float:
        """The logit at which a block runs for half of the draws while training."""
        c = self.constants
        return 0.0 if self.kind == "gumbel" else c.beta * math.log(-c.gamma / c.zeta)

    def forward(self, x: Tensor) -> Tensor:
        """Gate values [batch]: random while training, in eval() a function of x alone."""
        logit = self.logit(x)
        if not self.training:
            return self._evaluated(logit)
        noise = self.constants.draw_noise(tuple(logit.shape), logit)
        if self.kind == "gumbel":
            soft = torch.sigmoid((logit + noise) / self.temperature)
            hard = (logit + noise > 0).to(logit.dtype)
            values = hard + soft - soft.detach()
            probabilities = torch.sigmoid(logit)
        else:
            values = self.constants.sample(logit, noise)
            probabilities = self.constants.probability_open(logit)
        runs = (self._evaluated(logit.detach()) > 0).to(logit.dtype)
        self._decisions = Decisions(values, probabilities, runs + (probabilities - probabilities.detach()))
        return values

    def _evaluated(self, logit: Tensor) -> Tensor:
        if self.kind == "gumbel":
            return (logit > 0).to(logit.dtype)
        return evaluate_gates(logit, self.constants, self.rule)

    def logit(self, x: Tensor) -> Tensor:
        """The decision before noise and threshold, [batch]."""
        pooled = pool(x)
        if self.hidden is not None:
            pooled = torch.relu(self.hidden(pooled))
        logit: Tensor = self.last(pooled)
        return logit.squeeze(1)

    def take_decisions(self) -> Decisions:
        """The decisions of the last training batch, once.

        Raises:
            GateParameterError: the gate has not run in training mode since they were last taken.
        """
        found, self._decisions = self._decisions, None
        if found is None:
            raise GateParameterError(
                "ConditionalGate: no decisions to take; run the model in train() mode on a batch first, "
                "once before each call of the objective."
            )
        return found

    def get_extra_state(self) -> Tensor:
        """Kind, constants and rule as a uint8 tensor of JSON; see Gate."""
        c = self.constants
        fields = {"kind": self.kind, "beta": c.beta, "gamma": c.gamma, "zeta": c.zeta, "rule": self.rule}
        return torch.tensor(list(json.dumps(fields).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take kind, constants and rule from a checkpoint.

        Raises:
            GateParameterError: the state is no JSON of the five fields, or a field has no meaning.
        """
        try:
            fields = json.loads(bytes(state.to(torch.uint8).cpu().tolist()).decode())
            constants = HardConcrete(float(fields["beta"]), float(fields["gamma"]), float(fields["zeta"]))
            rule, kind = check_rule(str(fields["rule"])), str(fields["kind"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, GateParameterError):
                raise
            raise GateParameterError(
                "ConditionalGate: the stored constants are unreadable; expected JSON with kind, beta, gamma, zeta and "
                "rule. Save the checkpoint again."
            ) from error
        self.constants, self.rule, self.kind = constants, rule, _check_kind(kind)

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, rule={self.rule!r}"


def _check_kind(kind: str) -> GateKind:
    for known in KINDS:
        if kind == known:
            return known
    raise GateParameterError(f"ConditionalGate: kind is {kind!r}; expected one of {', '.join(KINDS)}.")


def pool(x: Tensor) -> Tensor:
    """Means over space, or over the positions of a sequence: [batch, features]."""
    if x.dim() == 2:
        return x
    if x.dim() == 3:
        return x.mean(1)
    if x.dim() >= 4:
        return x.mean(tuple(range(2, x.dim())))
    raise GateParameterError(
        f"ConditionalGate: the input has shape {list(x.shape)}; expected [batch, features], [batch, length, features] "
        "or [batch, features, height, width]."
    )
