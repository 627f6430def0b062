"""What does a convolution make of a map, of which all but the border repeats itself?"""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Map = NDArray[np.float64]


def convolve(node: ir.Node, x: Map, weight: Map, groups: int | None = None) -> Map:
    """Convolution of one example, x: [C, *space], weight: [O, C / groups, *kernel] -> [O, *space'], without bias.

    Args:
        groups: the node's own number of groups where it is left out.
    """
    space, groups = x.ndim - 1, groups_of(node) if groups is None else groups
    kernel = weight.shape[2:]
    strides = ints_of(node, "strides") or [1] * space
    dilations = ints_of(node, "dilations") or [1] * space
    pads = ints_of(node, "pads") if auto_pad(node) != "VALID" else None
    pads = pads or [0] * (2 * space)
    reach = [(kernel[d] - 1) * dilations[d] for d in range(space)]
    repeats: list[NDArray[np.int64]] = []
    for d in range(space):
        x, repeat = _without_repetition(x, 1 + d, reach[d], pads[d], pads[d + space], strides[d])
        repeats.append(repeat)
    padded = np.pad(x, [(0, 0), *((pads[d], pads[d + space]) for d in range(space))])
    sizes = [(padded.shape[1 + d] - reach[d] - 1) // strides[d] + 1 for d in range(space)]
    blocks = weight.reshape(groups, -1, *weight.shape[1:])
    out = np.zeros((groups, blocks.shape[1], *sizes))
    for tap in itertools.product(*(range(k) for k in kernel)):
        window = tuple(
            slice(tap[d] * dilations[d], tap[d] * dilations[d] + (sizes[d] - 1) * strides[d] + 1, strides[d])
            for d in range(space)
        )
        seen = padded[(slice(None), *window)].reshape(groups, -1, math.prod(sizes))
        weights = blocks.reshape(*blocks.shape[:3], -1)[..., np.ravel_multi_index(tap, kernel)]
        out += (weights @ seen).reshape(out.shape)
    out = out.reshape(-1, *sizes)
    for d, repeat in enumerate(repeats):
        if (repeat != 1).any():
            out = np.repeat(out, repeat, axis=1 + d)
    return out


def _without_repetition(
    x: Map, dim: int, reach: int, begin: int, end: int, stride: int
) -> tuple[Map, NDArray[np.int64]]:
    """Shorten the longest run of equal slices: away from the border a map repeats itself, and so does what it becomes.

    Args:
        reach: a window's length less one; begin, end: what is padded.
    Returns:
        (the shortened map, how often each slice of the result along `dim` stands in the whole one).
    """
    ones = np.ones((x.shape[dim] + begin + end - reach - 1) // stride + 1, np.int64)
    if stride != 1 or x.shape[dim] < 2:
        return x, ones
    others = tuple(d for d in range(x.ndim) if d != dim)
    equal = (np.diff(x, axis=dim) == 0).all(axis=others)
    first, length = 0, 1
    for is_equal, run in itertools.groupby(range(equal.size), key=lambda i: bool(equal[i])):
        steps = list(run)
        if is_equal and len(steps) + 1 > length:
            first, length = steps[0], len(steps) + 1
    spare = length - reach - 1  # windows that lie within the run, less one
    if spare <= 0:
        return x, ones
    repeat = ones[spare:]
    repeat[first + begin] = spare + 1
    return np.delete(x, range(first, first + spare), axis=dim), repeat


def auto_pad(node: ir.Node) -> str:
    """How the node says what is padded."""
    attribute = node.attributes.get("auto_pad")
    return "NOTSET" if attribute is None else attribute.as_string()


def groups_of(node: ir.Node) -> int:
    """Groups of a convolution."""
    attribute = node.attributes.get("group")
    return 1 if attribute is None else attribute.as_int()


def ints_of(node: ir.Node, name: str) -> list[int] | None:
    """An attribute of integers, None where it is left out."""
    attribute = node.attributes.get(name)
    return None if attribute is None else list(attribute.as_ints())
