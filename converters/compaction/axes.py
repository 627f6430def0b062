"""What is known about each axis: its constants, its readers' needs, and what may be removed?

An `Axis` is one dimension of one value. Three vectors over its indices carry the whole analysis:

- `Facts` (forward): the constant that fills slice i, NaN where it is not one known constant;
- `Liveness` (backward): whether some output can still depend on slice i;
- `Permission` (greatest fixpoint): whether slice i may be removed.

An index is *dead* when nobody needs it or when it is constant. Dead indices are removed when every
reader permits it; the index that stays although it is dead is recorded with the reader that kept it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

if TYPE_CHECKING:
    from converters.compaction.relations import Relation

Mask = NDArray[np.bool_]
Constants = NDArray[np.float64]

# Slices of a large initializer are compared on this many entries first: trained weights are almost
# never constant along a slice, so a few entries refute most slices without reading the rest.
_SAMPLE = 16

# The cause of an index that stays to pad a width (padding.py); relations have theirs from 0 on, -1 means chosen.
PADDING = -2


class DynamicAxisError(ValueError):
    """A dimension was taken to have a known size, but it has none; shapes in a file may contradict each other."""


class Axis(NamedTuple):
    """Dimension `dim` of `value`."""

    value: ir.Value
    dim: int

    @property
    def size(self) -> int:
        """Number of indices; raises if the dimension is dynamic."""
        size = static_size(self.value, self.dim)
        if size is None:
            raise DynamicAxisError(f"dimension {self.dim} of '{self.value.name}' is dynamic")
        return size

    def __str__(self) -> str:
        return f"{self.value.name}[{self.dim}]"


def rank(value: ir.Value) -> int | None:
    """Number of dimensions, None when the shape is unknown."""
    return None if value.shape is None else len(value.shape)


def static_size(value: ir.Value, dim: int) -> int | None:
    """Size of a dimension, None when it is dynamic or unknown."""
    if value.shape is None or dim >= len(value.shape):
        return None
    size = value.shape[dim]
    return size if isinstance(size, int) else None


def axes_of(value: ir.Value | None) -> list[Axis]:
    """The axes that carry vectors: static and longer than 1."""
    if value is None or value.shape is None:
        return []
    return [Axis(value, dim) for dim, size in enumerate(value.shape) if isinstance(size, int) and size > 1]


def is_constant(value: ir.Value | None) -> bool:
    """Whether the value is an initializer that no caller can override."""
    return value is not None and value.const_value is not None and not value.is_graph_input()


def array_of(value: ir.Value | None) -> NDArray[np.generic] | None:
    """The contents of a constant initializer, None for anything else."""
    if value is None or not is_constant(value):
        return None
    assert value.const_value is not None
    return value.const_value.numpy()


def as_float64(array: NDArray[np.generic]) -> Constants:
    """The same numbers in float64, also for bfloat16 and other types that NumPy does not own."""
    return np.asarray(array).astype(np.float64)


def constant_slices(array: NDArray[np.generic], dim: int) -> Constants | None:
    """For each index of `dim` the one number that fills its slice, NaN where it varies; None if all vary."""
    if array.dtype.kind not in "fiub" and "float" not in array.dtype.name:
        return None
    slices = np.moveaxis(array, dim, 0)
    slices = slices.reshape(slices.shape[0], -1)
    if slices.shape[1] == 0:
        return None
    first = slices[:, 0]
    if slices.shape[1] == 1:
        return as_float64(first)
    step = max(1, slices.shape[1] // _SAMPLE)
    uniform = (slices[:, ::step] == first[:, None]).all(axis=1)
    candidates = np.flatnonzero(uniform)
    if candidates.size == 0:
        return None
    uniform[candidates] = (slices[candidates] == first[candidates, None]).all(axis=1)
    return np.where(uniform, as_float64(first), np.nan) if uniform.any() else None


def distinct_slices(array: NDArray[np.generic], dim: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each distinct slice along `dim` stands first, and which of them each index holds."""
    number: dict[bytes, int] = {}
    first: list[int] = []
    index = np.zeros(array.shape[dim], np.int64)
    for position in range(array.shape[dim]):
        slice_ = array.take(position, axis=dim).tobytes()
        if slice_ not in number:
            number[slice_] = len(first)
            first.append(position)
        index[position] = number[slice_]
    return np.array(first, np.int64), index


class Twins(NamedTuple):
    """Slices that are affine in one common unknown u: slice i = scales[i] * u + offsets[i].

    Attributes:
        scales, offsets: shape [axis.size]; NaN where the slice is no such function.
    """

    scales: Constants
    offsets: Constants

    @property
    def known(self) -> Mask:
        """Which slices are twins; shape [axis.size]."""
        return ~np.isnan(self.scales)


class Facts:
    """Forward facts: for an axis, the constant that fills each slice, or NaN; and which slices are twins."""

    def __init__(self) -> None:
        self._constants: dict[Axis, Constants | None] = {}
        self._scalars: dict[ir.Value, float] = {}
        self._twins: dict[Axis, Twins] = {}

    def twins(self, axis: Axis) -> Twins | None:
        """The slices of an axis that are affine in one unknown, None when there are no two of them."""
        return self._twins.get(axis)

    def learn_twins(self, axis: Axis, twins: Twins | None) -> None:
        """Record twins; a slice whose scale or offset is not a finite number, or whose scale is 0, is none."""
        if twins is None:
            return
        usable = np.isfinite(twins.scales) & np.isfinite(twins.offsets) & (twins.scales != 0)
        if usable.sum() > 1:
            self._twins[axis] = Twins(np.where(usable, twins.scales, np.nan), np.where(usable, twins.offsets, np.nan))

    def constants(self, axis: Axis) -> Constants | None:
        """Shape [axis.size], float64, NaN = unknown; None when nothing at all is known."""
        if axis not in self._constants:
            array = array_of(axis.value)
            self._constants[axis] = None if array is None else constant_slices(array, axis.dim)
        return self._constants[axis]

    def learn(self, axis: Axis, constants: Constants | None) -> None:
        """Add facts on an axis; what is already known stays."""
        if constants is None or np.isnan(constants).all():
            return
        known = self.constants(axis)
        self._constants[axis] = constants if known is None else np.where(np.isnan(known), constants, known)

    def scalar(self, value: ir.Value) -> float:
        """The one number that fills the whole value, NaN if there is no such number."""
        if value not in self._scalars:
            self._scalars[value] = self._find_scalar(value)
        return self._scalars[value]

    def learn_scalar(self, value: ir.Value, number: float) -> None:
        """Record that `number` fills the whole value (used for values without a static axis)."""
        self._scalars[value] = number

    def _find_scalar(self, value: ir.Value) -> float:
        array = array_of(value)
        if array is not None and array.size == 1:
            return float(as_float64(array).reshape(()))
        for axis in axes_of(value):
            constants = self.constants(axis)
            if constants is not None and (constants == constants[0]).all():
                return float(constants[0])
        return float("nan")

    def is_zero(self, axis: Axis) -> Mask:
        """Which slices are known to be exactly zero, shape [axis.size]."""
        constants = self.constants(axis)
        return np.zeros(axis.size, bool) if constants is None else constants == 0

    def is_known(self, axis: Axis) -> Mask:
        """Which slices are known constants, shape [axis.size]."""
        constants = self.constants(axis)
        return np.zeros(axis.size, bool) if constants is None else ~np.isnan(constants)


class Liveness:
    """Backward facts: which slices some output can depend on. Everything starts unneeded."""

    def __init__(self) -> None:
        self._needed: dict[Axis, Mask] = {}

    def needed(self, axis: Axis) -> Mask:
        """Shape [axis.size]; True where a reader needs the slice."""
        mask = self._needed.get(axis)
        if mask is None:
            mask = self._needed[axis] = np.zeros(axis.size, bool)
        return mask

    def need(self, axis: Axis, mask: Mask | bool) -> None:
        """A reader needs these slices."""
        if axis in self._needed:
            self._needed[axis] |= mask
        else:
            self._needed[axis] = np.broadcast_to(mask, axis.size).copy()


class Permission:
    """What may be removed: starts as everything, and each relation only ever withholds.

    `withhold` remembers which relation kept an index first, so that the plan can explain itself.
    """

    def __init__(self, relations: Sequence[Relation]) -> None:
        self._relations = relations
        self._evens = np.array([relation.evens_out for relation in relations], bool)
        # those whose axes have lost a permission since they last evened out
        self._uneven: set[int] = set()
        self._removable: dict[Axis, Mask] = {}
        self._cause: dict[Axis, NDArray[np.int32]] = {}
        self._readers: dict[Axis, list[int]] = {}
        for number, relation in enumerate(relations):
            for axis in relation.axes:
                self._readers.setdefault(axis, []).append(number)
        self._queue: list[int] = []
        self._queued = np.zeros(len(relations), bool)
        self._current = -1
        self._journal: list[tuple[Axis, Mask]] | None = None

    @property
    def axes(self) -> Iterable[Axis]:
        """Every axis that some relation mentions."""
        return self._readers

    def removable(self, axis: Axis) -> Mask:
        """Shape [axis.size]; True where the slice may go."""
        mask = self._removable.get(axis)
        if mask is None:
            mask = self._removable[axis] = np.ones(axis.size, bool)
        return mask

    def cause(self, axis: Axis) -> NDArray[np.int32]:
        """Shape [axis.size]; number of the relation that kept each index, -1 where none did."""
        cause = self._cause.get(axis)
        if cause is None:
            cause = self._cause[axis] = np.full(axis.size, -1, np.int32)
        return cause

    def withhold(self, axis: Axis, mask: Mask, cause: NDArray[np.int32] | None = None) -> None:
        """Keep these indices; `cause` copies the reason from the axis that required it."""
        removable = self.removable(axis)
        cleared = removable & mask
        if not cleared.any():
            return
        removable &= ~cleared
        if self._journal is not None:
            self._journal.append((axis, cleared))
        self.cause(axis)[cleared] = self._current if cause is None else cause[cleared]
        self._enqueue(axis)

    def solve(self) -> None:
        """Run every relation until nothing changes: the greatest fixpoint below the current state.

        Relations that merely even out counts go last, each time the others have settled, so that they
        see final counts and keep no more than they must.
        """
        for number in range(len(self._relations)):
            self._queued[number] = True
            self._queue.append(number)
        self._uneven.update(int(number) for number in np.flatnonzero(self._evens))
        self.resume()

    def resume(self) -> None:
        """Solve again after `withhold` was called from outside."""
        while True:
            self._drain()
            if not self._uneven:
                return
            pending, self._uneven = sorted(self._uneven), set()
            for number in pending:
                self._run(number, self._relations[number].even_out)

    def gains(self, axis: Axis, mask: Mask) -> dict[Axis, int]:
        """How many indices each axis would keep besides, if these were kept; nothing changes."""
        gained: dict[Axis, int] = {}
        with self.trial() as journal:
            self.withhold(axis, mask)
            self.resume()
            for other, cleared in journal:
                gained[other] = gained.get(other, 0) + int(cleared.sum())
        return gained

    @contextmanager
    def trial(self) -> Iterator[list[tuple[Axis, Mask]]]:
        """Give back at the end whatever is withheld in between; yields it as it grows."""
        journal: list[tuple[Axis, Mask]] = []
        self._journal = journal
        yield journal
        self._journal = None
        for axis, cleared in journal:
            self._removable[axis] |= cleared
            self._cause[axis][cleared] = -1

    def ask_again(self, axis: Axis) -> None:
        """Solve again after a relation around this axis has come to want more than before."""
        self._enqueue(axis)
        self.resume()

    def _enqueue(self, axis: Axis) -> None:
        for number in self._readers.get(axis, ()):
            if self._evens[number]:
                self._uneven.add(number)
            if not self._queued[number]:
                self._queued[number] = True
                self._queue.append(number)

    def _drain(self) -> None:
        # first in, first out by index: a list that is consumed from the front without copying
        position = 0
        while position < len(self._queue):
            number = self._queue[position]
            position += 1
            self._queued[number] = False
            self._run(number, self._relations[number].shrink)
        self._queue.clear()

    def _run(self, number: int, step: Callable[[Permission], None]) -> None:
        self._current = number
        step(self)
        self._current = -1
