"""What does a linear or convolutional layer look like whose units can be switched off by gates?"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l0runtime.errors import GateParameterError
from l0runtime.gates.evaluation import EvaluationRule
from l0runtime.gates.gate import Gate
from l0runtime.gates.hard_concrete import HardConcrete

GateSide = Literal["input", "output"]


class GatedLinear(nn.Linear):
    """A linear layer with one gate per input unit (default, as the paper's dense layers) or per output unit.

    side="input":                      y = (z * x) W^T + b
    side="output", gate_bias=True:     y = z * (x W^T + b)      a closed unit is exactly 0
    side="output", gate_bias=False:    y = z * (x W^T) + b      a closed unit is the constant b

    Args:
        in_features, out_features, bias: as for nn.Linear.
        side: which units are gated; the gate has that many entries.
        gate_bias: whether an output gate multiplies the bias too; without meaning for input gates.
        drop_rate, constants, rule, per_example: as for Gate.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        side: GateSide = "input",
        gate_bias: bool = True,
        drop_rate: float = 0.5,
        constants: HardConcrete | None = None,
        rule: EvaluationRule = "paper",
        per_example: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.side: GateSide = _check_side(side)
        self.gate_bias = gate_bias
        self.gate = Gate(
            in_features if side == "input" else out_features,
            drop_rate=drop_rate,
            constants=constants,
            rule=rule,
            per_example=per_example,
        )
        _initialise_as_paper(self.weight, self.bias)

    def forward(self, input: Tensor) -> Tensor:
        if self.side == "input":
            return F.linear(self.gate(input, dim=-1), self.weight, self.bias)
        output: Tensor
        if self.gate_bias:
            output = self.gate(F.linear(input, self.weight, self.bias), dim=-1)
            return output
        output = self.gate(F.linear(input, self.weight), dim=-1)
        return output if self.bias is None else output + self.bias

    def group_size(self) -> int:
        """Number of parameters |g| that one closed gate removes from this layer."""
        if self.side == "input":
            return self.out_features
        return self.in_features + int(self.bias is not None and self.gate_bias)

    def group_squared_norms(self) -> Tensor:
        """Squared L2 norm of the parameters behind each gate, shape [n]."""
        if self.side == "input":
            return self.weight.square().sum(0)
        norms = self.weight.square().sum(1)
        return norms + self.bias.square() if self.bias is not None and self.gate_bias else norms

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, side={self.side!r}, gate_bias={self.gate_bias}"


class GatedConv2d(nn.Conv2d):
    """A convolution with one gate per output channel (default, as the paper's) or per input channel.

    side="output", gate_bias=True:     y = z * (W conv x + b)   a closed channel is exactly 0
    side="output", gate_bias=False:    y = z * (W conv x) + b   a closed channel is the constant b
    side="input":                      y = W conv (z * x) + b

    Args:
        in_channels, ..., bias: as for nn.Conv2d.
        side, gate_bias, drop_rate, constants, rule, per_example: as for GatedLinear.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        side: GateSide = "output",
        gate_bias: bool = True,
        drop_rate: float = 0.5,
        constants: HardConcrete | None = None,
        rule: EvaluationRule = "paper",
        per_example: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.side: GateSide = _check_side(side)
        self.gate_bias = gate_bias
        self.gate = Gate(
            in_channels if side == "input" else out_channels,
            drop_rate=drop_rate,
            constants=constants,
            rule=rule,
            per_example=per_example,
        )
        _initialise_as_paper(self.weight, self.bias)

    def forward(self, input: Tensor) -> Tensor:
        if self.side == "input":
            return super().forward(self.gate(input))
        output: Tensor
        if self.gate_bias:
            output = self.gate(super().forward(input))
            return output
        output = self.gate(self._conv_forward(input, self.weight, None))
        return output if self.bias is None else output + self.bias.view(1, -1, 1, 1)

    def group_size(self) -> int:
        """Number of parameters |g| that one closed gate removes from this layer."""
        area = self.kernel_size[0] * self.kernel_size[1]
        if self.side == "input":
            return self.out_channels // self.groups * area
        return self.in_channels // self.groups * area + int(self.bias is not None and self.gate_bias)

    def group_squared_norms(self) -> Tensor:
        """Squared L2 norm of the parameters behind each gate, shape [n]."""
        squares = self.weight.square().sum((2, 3))  # [out, in / groups]
        if self.side == "input":
            # input channel g * (in / groups) + j is read by the filters of group g only
            return squares.view(self.groups, -1, squares.shape[1]).sum(1).flatten()
        norms = squares.sum(1)
        return norms + self.bias.square() if self.bias is not None and self.gate_bias else norms

    def extra_repr(self) -> str:
        plain = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{plain}, side={self.side!r}, gate_bias={self.gate_bias}"


GatedLayer = GatedLinear | GatedConv2d


def _check_side(side: str) -> GateSide:
    for known in get_args(GateSide):
        if side == known:
            return known  # type: ignore[no-any-return]
    raise GateParameterError(f"side is {side!r}; expected 'input' or 'output'.")


def _initialise_as_paper(weight: Tensor, bias: Tensor | None) -> None:
    """He's normal initialisation by fan-in, zero bias, as in the authors' code."""
    nn.init.kaiming_normal_(weight, mode="fan_in", nonlinearity="relu")
    if bias is not None:
        with torch.no_grad():
            bias.zero_()
