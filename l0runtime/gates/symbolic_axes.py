"""Which axes of a traced network are one and the same index space?

An axis of a tensor is a product of `Space`s, outermost first: the columns of an attention layer's output projection
are (heads, head size), a flattened feature map is (channels, height, width). Two axes that operators tie together are
unified, which splits a space where one side is finer than the other:

    unify((s768,), (s12, s64))      s768 becomes the product of s12 and s64, wherever it occurs

A concatenation is a space whose `parts` are axes. A space that no gate may touch is pinned, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np


class Space:
    """One set of indices, shared by every axis that it occurs in.

    Args:
        size: number of indices, at least 2 (an axis of length 1 is the empty product).
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.pinned: str | None = None  # why no gate may close one of its indices
        self.is_added_to = False  # several layers add into it
        self.is_mixed = False  # a norm or a sum over it sees all of its values
        self.is_head = False  # attention treats its indices independently
        self._parent: Space | None = None
        self._factors: tuple[Space, ...] | None = None
        self.parts: tuple[Axis, ...] | None = None

    def root(self) -> Space:
        """The space that stands for all that were unified with this one."""
        space = self
        while space._parent is not None:
            space = space._parent
        return space

    def _take_marks(self, other: Space) -> None:
        self.pinned = self.pinned or other.pinned
        self.is_added_to |= other.is_added_to
        self.is_mixed |= other.is_mixed
        self.is_head |= other.is_head


Axis = tuple[Space, ...]


def new_axis(size: int, pinned: str | None = None) -> Axis:
    """An axis of its own; an axis of length 1 has no space at all."""
    if size <= 1:
        return ()
    space = Space(size)
    space.pinned = pinned
    return (space,)


def axis_size(axis: Axis) -> int:
    """Length of an axis."""
    return math.prod(space.size for space in axis)


def factors(axis: Iterable[Space]) -> list[Space]:
    """The finest spaces that an axis is the product of, outermost first."""
    found: list[Space] = []
    for space in axis:
        space = space.root()
        found.extend([space] if space._factors is None else factors(space._factors))
    return found


def concatenate(axes: Sequence[Axis]) -> Axis:
    """The axis along which tensors were concatenated."""
    axis = new_axis(sum(axis_size(axis) for axis in axes))
    for space in axis:
        space.parts = tuple(axes)
    return axis


def split(space: Space, outer: int) -> None:
    """Make a space the product of `outer` blocks and the positions inside a block."""
    space = space.root()
    pair = (Space(outer), Space(space.size // outer))
    for part in pair:
        part._take_marks(space)
    space._factors = pair


def unify(first: Axis, second: Axis) -> None:
    """Tie two axes of equal length, position by position; what cannot be tied is pinned."""
    left, right = factors(first), factors(second)
    while left and right:
        a, b = left[0], right[0]
        if a is b or a.size == b.size:
            if a is not b:
                _merge(a, b)
            del left[0], right[0]
        elif a.size > b.size and _can_split(a, b.size):
            split(a, b.size)
            left, right = factors(left), factors(right)
        elif b.size > a.size and _can_split(b, a.size):
            split(b, a.size)
            left, right = factors(left), factors(right)
        else:
            break
    pin([*left, *right], "two structures that do not match meet on it")


def _can_split(space: Space, outer: int) -> bool:
    return space.parts is None and space.size % outer == 0


def _merge(a: Space, b: Space) -> None:
    """Both are factors of their axes, so neither is a product."""
    b._parent = a
    a._take_marks(b)
    if a.parts is None:
        a.parts = b.parts
    elif b.parts is not None:
        if [axis_size(part) for part in a.parts] == [axis_size(part) for part in b.parts]:
            for mine, other in zip(a.parts, b.parts, strict=True):
                unify(mine, other)
        else:
            pin([a, *(space for part in b.parts for space in part)], "two concatenations that do not match meet on it")
    if a.pinned is not None:
        pin([a], a.pinned)


def pin(axis: Iterable[Space], reason: str) -> None:
    """Forbid gates on every space of an axis, the parts of a concatenation included; the first reason stays."""
    for space in factors(axis):
        space.pinned = space.pinned or reason
        for part in space.parts or ():
            if any(inner.pinned is None for inner in leaves(part)):
                pin(part, reason)


def leaves(axis: Iterable[Space]) -> list[Space]:
    """All spaces below an axis, the parts of concatenations included."""
    found: list[Space] = []
    for space in factors(axis):
        found.extend([space] if space.parts is None else [leaf for part in space.parts for leaf in leaves(part)])
    return found


def mark(axis: Iterable[Space], name: str) -> None:
    """Set one of the marks is_added_to, is_mixed and is_head on all spaces below an axis."""
    for space in leaves(axis):
        setattr(space, name, True)


def regroup(axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis] | None:
    """The axes after a reshape to `sizes`, None where a size cuts through a space that cannot be split."""
    queue = factors(space for axis in axes for space in axis)
    result: list[Axis] = []
    for size in sizes:
        taken: list[Space] = []
        missing = size
        while missing > 1:
            if not queue:
                return None
            space = queue[0]
            if missing % space.size == 0:
                taken.append(queue.pop(0))
                missing //= space.size
            elif space.size % missing == 0 and _can_split(space, missing):
                split(space, missing)
                queue = factors(queue)
            else:
                return None
        result.append(tuple(taken))
    return result if not queue else None


def positions(axis: Axis, space: Space) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """For each index of an axis the index of `space` that it belongs to, -1 where it belongs to none; int64 [n].

    Raises:
        ValueError: the space occurs twice in one product, so an index belongs to two of its indices.
    """
    result = np.full(1, -1, np.int64)
    for factor in factors(axis):
        if factor is space.root():
            inner = np.arange(factor.size)
        elif factor.parts is not None:
            inner = np.concatenate([positions(part, space) for part in factor.parts])
        else:
            inner = np.full(factor.size, -1, np.int64)
        if (result >= 0).any() and (inner >= 0).any():
            raise ValueError("the space occurs twice in the axis")
        result = np.maximum(result[:, None], inner[None, :]).reshape(-1)
    return result
