"""Which networks are compared on MNIST: static ones, and ones of which a part runs for some images only?

All begin with two convolutions of stride 2 (28x28 -> 14x14 -> 7x7) and end with a linear layer on all pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l0runtime.gates import GateSpec, TargetCost, attach
from l0runtime.gates.conditional import (
    Conditional,
    ConditionalGate,
    ConditionalPenalty,
    ConfidenceExit,
    EarlyExit,
    block_macs,
)

PIXELS, CLASSES = 49, 10
Loss = Callable[[Tensor, Tensor], Tensor]
Made = tuple[nn.Module, Loss]
"""A network, and the loss of a batch (images [batch, 1, 28, 28], labels [batch])."""


def convolution(width_in: int, width_out: int, stride: int = 1) -> nn.Sequential:
    """Convolution, normalisation, activation."""
    return nn.Sequential(nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU())


def classifier(width: int) -> nn.Sequential:
    """Linear on [batch, width, 7, 7]."""
    return nn.Sequential(nn.Flatten(), nn.Linear(PIXELS * width, CLASSES))


def rest_of(width: int, rest: Sequence[int]) -> nn.Sequential:
    """Convolutions at 7x7 and a classifier."""
    layers: list[nn.Module] = []
    for wider in rest:
        layers.append(convolution(width, wider))
        width = wider
    return nn.Sequential(*layers, classifier(width))


def beginning(first: int, second: int) -> nn.Sequential:
    """To 7x7."""
    return nn.Sequential(convolution(1, first, 2), convolution(first, second, 2))


def static(first: int, second: int, rest: Sequence[int]) -> Made:
    """The same for every image."""
    net = nn.Sequential(beginning(first, second), rest_of(second, rest))
    return net, lambda x, y: F.cross_entropy(net(x), y)


def compacted(first: int, second: int, rest: Sequence[int], target: float, steps: int, example: Tensor) -> Made:
    """Static, with L0 gates that training brings to a share of the multiply-accumulates."""
    net, loss = static(first, second, rest)
    attach(net, GateSpec(kinds=("units",)), example)
    cost = TargetCost(net, target, steps)
    return net, lambda x, y: loss(x, y) + cost()


def exit_by_confidence(first: int, second: int, rest: Sequence[int]) -> Made:
    """A classifier on the 7x7 features decides where it is sure; both classifiers are trained."""
    start, leave = beginning(first, second), ConfidenceExit(classifier(second), rest_of(second, rest))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        early, late = leave.both(start(x))
        return F.cross_entropy(late, y) + 0.5 * F.cross_entropy(early, y)

    return nn.Sequential(start, leave), loss


def exit_by_gate(first: int, second: int, rest: Sequence[int], rate: float) -> Made:
    """A gate on the 7x7 features decides; it is trained with the network, to let `rate` of the images go on."""
    gate = ConditionalGate(second, hidden=16, initial_rate=0.5)
    net = nn.Sequential(beginning(first, second), EarlyExit(classifier(second), rest_of(second, rest), gate))
    penalty = ConditionalPenalty(net, rate, weight=4.0, shaping=0.05)
    return net, lambda x, y: F.cross_entropy(net(x), y) + penalty()


def gated_blocks(first: int, second: int, inner: int, blocks: int, share: float, example: Tensor) -> Made:
    """Residual blocks second -> inner -> second with a gate each; `share` of the blocks' work is the target."""

    def block() -> Conditional:
        body = nn.Sequential(
            convolution(second, inner), nn.Conv2d(inner, second, 3, 1, 1, bias=False), nn.BatchNorm2d(second)
        )
        return Conditional(body, ConditionalGate(second, hidden=8), activation=nn.ReLU())

    net = nn.Sequential(beginning(first, second), *(block() for _ in range(blocks)), classifier(second))
    penalty = ConditionalPenalty(net, share, unit="macs", macs=block_macs(net, example[:1]), weight=4.0, shaping=0.02)
    return net, lambda x, y: F.cross_entropy(net(x), y) + penalty()


def choose_threshold(net: nn.Module, x: Tensor, y: Tensor, allowed: float, thresholds: Sequence[float]) -> float:
    """The smallest threshold that costs at most `allowed` of error over the whole network, on images held out."""
    start, leave = net.get_submodule("0"), net.get_submodule("1")
    assert isinstance(leave, ConfidenceExit)
    with torch.no_grad():
        early, late = leave.both(start(x))
    sure = torch.softmax(early, 1).amax(1)
    full = float((late.argmax(1) != y).float().mean())
    for threshold in sorted(thresholds):
        chosen = torch.where((sure < threshold)[:, None], late, early)
        if float((chosen.argmax(1) != y).float().mean()) <= full + allowed:
            return threshold
    return 1.0
