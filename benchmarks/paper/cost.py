"""How many parameters and FLOPs does a LeNet of given widths have?

FLOPs are two per multiply-add of the convolutions and linear layers, for one image; biases, ReLU and pooling count
nothing. Widths are counted as the paper prints them: 784-300-100 (inputs of the three linear layers) and 20-50-800-500
(filters, filters, inputs, inputs).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

CLASSES = 10


class Cost(NamedTuple):
    parameters: int
    flops: int


def cost_of(network: str, widths: Sequence[int]) -> Cost:
    """Cost of a network with the given widths; kept inputs of LeNet-5's first linear layer count one by one."""
    if network == "lenet-300-100":
        pixels, first, second = widths
        layers = [(pixels, first, 1), (first, second, 1), (second, CLASSES, 1)]
    elif network == "lenet-5":
        first, second, features, hidden = widths
        # a 5x5 filter is applied at 24 x 24 places of the image, then at 8 x 8 of the pooled map
        layers = [(25, first, 24 * 24), (25 * first, second, 8 * 8), (features, hidden, 1), (hidden, CLASSES, 1)]
    else:
        raise ValueError(f"network is {network!r}; expected 'lenet-300-100' or 'lenet-5'.")
    parameters = sum(fan_in * fan_out + fan_out for fan_in, fan_out, _ in layers)
    flops = sum(2 * fan_in * fan_out * places for fan_in, fan_out, places in layers)
    return Cost(parameters, flops)
