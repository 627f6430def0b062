"""What does a small gated VGG look like?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from l0runtime.errors import GateParameterError
from l0runtime.gates.evaluation import EvaluationRule
from l0runtime.gates.layers import GatedConv2d, GatedLinear
from l0runtime.gates.registry import register_architecture


@register_architecture("vgg")
class GatedVGG(nn.Module):
    """Stages of 3x3 convolutions gated on their filters, each followed by BatchNorm and ReLU; pooling between stages.

    The gate comes before BatchNorm, as in the paper's residual network, so a closed filter leaves a constant channel
    rather than zeros. The last stage is averaged over space, and the classifier is a linear layer gated on its inputs.

    Input [batch, channels, height, width], height and width at least 2 ** (number of stages - 1); output
    [batch, classes], logits.

    Args:
        channels: input channels.
        stages: filters of each convolution, stage by stage.
        classes: number of classes.
        batch_norm: leave BatchNorm out with False; the convolutions then have a bias.
        drop_rate, rule, per_example: as for Gate.
    Raises:
        GateParameterError: no stage, or a stage without convolution.
    """

    def __init__(
        self,
        channels: int = 3,
        stages: Sequence[Sequence[int]] = ((64, 64), (128, 128), (256, 256)),
        classes: int = 10,
        batch_norm: bool = True,
        drop_rate: float = 0.1,
        rule: EvaluationRule = "paper",
        per_example: bool = False,
    ) -> None:
        super().__init__()
        if not stages or not all(stages):
            raise GateParameterError(f"GatedVGG: stages is {stages!r}; expected at least one filter count per stage.")
        self.config = {
            "channels": channels,
            "stages": [list(stage) for stage in stages],
            "classes": classes,
            "batch_norm": batch_norm,
            "drop_rate": drop_rate,
            "rule": rule,
            "per_example": per_example,
        }
        layers: list[nn.Module] = []
        width = channels
        for number, stage in enumerate(stages):
            if number > 0:
                layers.append(nn.MaxPool2d(2))
            for filters in stage:
                layers.append(
                    GatedConv2d(
                        width,
                        filters,
                        3,
                        padding=1,
                        bias=not batch_norm,
                        drop_rate=drop_rate,
                        rule=rule,
                        per_example=per_example,
                    )
                )
                if batch_norm:
                    layers.append(nn.BatchNorm2d(filters))
                layers.append(nn.ReLU())
                width = filters
        self.features = nn.Sequential(*layers)
        self.classifier = GatedLinear(width, classes, drop_rate=drop_rate, rule=rule, per_example=per_example)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.features(x)  # [batch, width, h, w]
        logits: Tensor = self.classifier(torch.mean(features, (2, 3)))
        return logits
