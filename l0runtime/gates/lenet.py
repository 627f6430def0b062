"""What do the paper's two MNIST networks look like, with their gates?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from l0runtime.gates.evaluation import EvaluationRule
from l0runtime.gates.layers import GatedConv2d, GatedLinear
from l0runtime.gates.registry import register_architecture


@register_architecture("lenet-300-100")
class LeNet300(nn.Module):
    """LeNet-300-100: three linear layers whose input units are gated, drop rate 0.2 for the pixels and 0.5 after.

    Input [batch, 784] or any shape that flattens to it, in [0, 1]; output [batch, classes], logits.
    """

    def __init__(
        self,
        inputs: int = 784,
        hidden: Sequence[int] = (300, 100),
        classes: int = 10,
        rule: EvaluationRule = "paper",
        per_example: bool = True,
    ) -> None:
        super().__init__()
        self.config = {
            "inputs": inputs,
            "hidden": list(hidden),
            "classes": classes,
            "rule": rule,
            "per_example": per_example,
        }
        widths = [inputs, *hidden, classes]
        layers: list[nn.Module] = [nn.Flatten()]
        for index, (width_in, width_out) in enumerate(pairwise(widths)):
            drop_rate = 0.2 if index == 0 else 0.5
            layers.append(GatedLinear(width_in, width_out, drop_rate=drop_rate, rule=rule, per_example=per_example))
            layers.append(nn.ReLU())
        self.layers = nn.Sequential(*layers[:-1])  # no ReLU after the logits

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layers(x)
        return output


@register_architecture("lenet-5")
class LeNet5(nn.Module):
    """LeNet-5-Caffe, 20-50-800-500: two convolutions gated on their filters, two linear layers gated on their inputs.

    Input [batch, 1, 28, 28] in [0, 1]; output [batch, classes], logits. The 800 inputs of the first linear layer have
    gates of their own, on top of those of the 50 filters that feed them.
    """

    def __init__(
        self,
        filters: Sequence[int] = (20, 50),
        hidden: int = 500,
        classes: int = 10,
        rule: EvaluationRule = "paper",
        per_example: bool = True,
    ) -> None:
        super().__init__()
        self.config = {
            "filters": list(filters),
            "hidden": hidden,
            "classes": classes,
            "rule": rule,
            "per_example": per_example,
        }
        first, second = filters
        self.conv1 = GatedConv2d(1, first, 5, rule=rule, per_example=per_example)
        self.conv2 = GatedConv2d(first, second, 5, rule=rule, per_example=per_example)
        self.fc1 = GatedLinear(second * 4 * 4, hidden, rule=rule, per_example=per_example)
        self.fc2 = GatedLinear(hidden, classes, rule=rule, per_example=per_example)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        # max-pooling commutes with ReLU; pooling first leaves a quarter of the work
        x = torch.relu(self.pool(self.conv1(x)))  # [batch, 20, 12, 12]
        x = torch.relu(self.pool(self.conv2(x)))  # [batch, 50, 4, 4]
        x = torch.relu(self.fc1(x.flatten(1)))
        output: Tensor = self.fc2(x)
        return output
