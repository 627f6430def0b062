"""What does the paper's pre-activation Wide ResNet look like, with its gates?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from l0runtime.errors import GateParameterError
from l0runtime.gates.evaluation import EvaluationRule
from l0runtime.gates.layers import GatedConv2d
from l0runtime.gates.registry import register_architecture


class PreActivationBlock(nn.Module):
    """BatchNorm, ReLU, gated 3x3 convolution, BatchNorm, ReLU, 3x3 convolution, and a shortcut around them.

    Only the first convolution is gated, before the second BatchNorm: a closed channel reaches the second convolution
    as the constant relu(bias - mean * weight / deviation), not as zero. The stride is on the second convolution, as in
    the authors' code. Where the width changes, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        stride: int,
        drop_rate: float,
        rule: EvaluationRule,
        per_example: bool,
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = GatedConv2d(
            width_in, width_out, 3, padding=1, bias=False, drop_rate=drop_rate, rule=rule, per_example=per_example
        )
        self.bn2 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, stride, 1, bias=False)
        self.shortcut = nn.Conv2d(width_in, width_out, 1, stride, bias=False) if width_in != width_out else None
        nn.init.kaiming_normal_(self.conv2.weight, mode="fan_in", nonlinearity="relu")
        if self.shortcut is not None:
            nn.init.kaiming_normal_(self.shortcut.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        activated = torch.relu(self.bn1(x))
        stream = x if self.shortcut is None else self.shortcut(activated)
        output: Tensor = self.conv2(torch.relu(self.bn2(self.conv1(activated)))) + stream
        return output


@register_architecture("wide-resnet")
class WideResNet(nn.Module):
    """WRN-depth-widen: three groups of (depth - 4) / 6 pre-activation blocks, 16, 32 and 64 times `widen` channels.

    Input [batch, 3, height, width], of any size from 4 x 4 (32 x 32 for CIFAR); output [batch, classes], logits. The
    authors' code averages windows of 8 x 8 at the end, which for 32 x 32 is the average over space taken here.

    Args:
        depth: 4 plus a multiple of 6, such as 28.
        widen: width factor, such as 10.
        classes: number of classes.
        drop_rate, rule, per_example: as for Gate; the paper's drop rate is 0.3.
    Raises:
        GateParameterError: depth is not 4 plus a positive multiple of 6, or widen < 1.
    """

    def __init__(
        self,
        depth: int = 28,
        widen: int = 10,
        classes: int = 10,
        drop_rate: float = 0.3,
        rule: EvaluationRule = "paper",
        per_example: bool = False,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6 or widen < 1:
            raise GateParameterError(
                f"WideResNet: depth is {depth} and widen is {widen}; "
                "expected a depth of 4 plus a positive multiple of 6 (such as 28), and widen >= 1."
            )
        self.config = {
            "depth": depth,
            "widen": widen,
            "classes": classes,
            "drop_rate": drop_rate,
            "rule": rule,
            "per_example": per_example,
        }
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_in", nonlinearity="relu")
        blocks: list[nn.Module] = []
        width_in = 16
        for group, width_out in enumerate((16 * widen, 32 * widen, 64 * widen)):
            for index in range((depth - 4) // 6):
                stride = 2 if group > 0 and index == 0 else 1
                blocks.append(PreActivationBlock(width_in, width_out, stride, drop_rate, rule, per_example))
                width_in = width_out
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(width_in)
        self.fc = nn.Linear(width_in, classes)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.relu(self.bn(self.blocks(self.conv1(x))))  # [batch, 64 * widen, h / 4, w / 4]
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits
