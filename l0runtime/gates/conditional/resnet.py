"""What does a residual network look like whose blocks run for some images only?"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from l0runtime.errors import GateParameterError
from l0runtime.gates.conditional.blocks import Conditional, EarlyExit
from l0runtime.gates.conditional.gate import ConditionalGate, GateKind
from l0runtime.gates.layers import GatedConv2d
from l0runtime.gates.registry import register_architecture


@register_architecture("conditional-resnet")
class ConditionalResNet(nn.Module):
    """A convolution, stages of conditional residual blocks, the mean over space, a linear layer.

    Each block is conv, BatchNorm, ReLU, conv, BatchNorm, then the sum and a ReLU. Stages after the first begin with a
    convolution of stride 2 that always runs. Input [batch, channels, height, width], output [batch, classes], logits.

    Args:
        channels: of the images.
        widths: channels of each stage.
        blocks: conditional blocks in each stage.
        classes: number of classes.
        hidden: hidden units of each gate; 0 for a linear gate.
        kind: of the conditional gates.
        initial_rate: share of the images for which a block runs before training.
        gated: also put static L0 gates on the first convolution of each block.
        exits: stages after which easy images may leave, counted from 0; not the last one.
    Raises:
        GateParameterError: no stage, or an exit that is not before the last stage.
    """

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (16, 32),
        blocks: int = 2,
        classes: int = 10,
        hidden: int = 8,
        kind: GateKind = "gumbel",
        initial_rate: float = 0.85,
        gated: bool = False,
        exits: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1 or blocks < 0 or any(not 0 <= place < len(widths) - 1 for place in exits):
            raise GateParameterError(
                f"ConditionalResNet: widths are {list(widths)}, blocks {blocks} and exits {list(exits)}; "
                "expected at least one width, and exits before the last stage."
            )
        self.config = {
            "channels": channels,
            "widths": list(widths),
            "blocks": blocks,
            "classes": classes,
            "hidden": hidden,
            "kind": kind,
            "initial_rate": initial_rate,
            "gated": gated,
            "exits": list(exits),
        }

        def gate(width: int) -> ConditionalGate:
            return ConditionalGate(width, hidden=hidden, kind=kind, initial_rate=initial_rate)

        network: nn.Module = _Classifier(widths[-1], classes)
        for place in reversed(range(len(widths))):
            width_in = channels if place == 0 else widths[place - 1]
            width = widths[place]
            stage = nn.Sequential(
                _convolution(width_in, width, 1 if place == 0 else 2),
                nn.ReLU(),
                *(Conditional(_body(width, gated), gate(width), activation=nn.ReLU()) for _ in range(blocks)),
            )
            if place in exits:
                network = EarlyExit(_Classifier(width, classes), network, gate(width))
            network = nn.Sequential(stage, network)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


class _Classifier(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _convolution(width_in: int, width_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False), nn.BatchNorm2d(width_out))


def _body(width: int, gated: bool) -> nn.Sequential:
    first = (
        GatedConv2d(width, width, 3, padding=1, bias=False) if gated else nn.Conv2d(width, width, 3, 1, 1, bias=False)
    )
    return nn.Sequential(
        first, nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
    )
