"""How is a batch cut into sizes that a model should see: no larger than a limit, padded up to a bucket?

Cutting and padding are right only if a model treats each row by itself. Declared shapes say which axis the rows are
on; that rows do not mix is checked on the first batch: rows must come out the same alone and in company. Of a block
that runs for some inputs only, such a trial may see nothing: the file says whether it may mix rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from l0runtime.conditional.metadata import read_conditional
from l0runtime.errors import InputError, OptionError, UnsupportedModelError
from l0runtime.session.arrays import Array
from l0runtime.session.specs import TensorSpec

Feed = dict[str, Array]
RunArrays = Callable[[Feed], list[Any]]
# Rounding may differ with the batch size, since kernels sum in another order; mixing rows changes far more.
_TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a batch, run together with padding up to `size` rows."""

    start: int
    stop: int
    size: int


def cut(rows: int, max_batch: int | None, buckets: Sequence[int]) -> tuple[Piece, ...]:
    """Cut a batch into pieces.

    Args:
        rows: of the batch; an empty batch is one empty piece.
        max_batch: the largest piece; the largest bucket if None and there are buckets.
        buckets: sizes to pad to, ascending; no padding if empty.
    """
    limit = max_batch or (buckets[-1] if buckets else max(rows, 1))
    pieces = []
    for start in range(0, max(rows, 1), limit):
        stop = min(start + limit, rows)
        size = next((bucket for bucket in buckets if bucket >= stop - start), stop - start) if stop > start else 0
        pieces.append(Piece(start, stop, size))
    return tuple(pieces)


def pad_rows(array: Array, size: int) -> Array:
    """Add rows of zeros up to `size` rows; zero is a valid index of every table."""
    if len(array) == size:
        return array
    padded = np.zeros((size, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded


def check_options(max_batch: int | None, buckets: Sequence[int]) -> None:
    """Refuse limits without a meaning.

    Raises:
        OptionError: a size below 1, buckets not ascending, or a limit above the largest bucket.
    """
    if max_batch is not None and (not isinstance(max_batch, int) or max_batch < 1):
        raise OptionError(f"max_batch = {max_batch!r}: expected a whole number of at least 1.")
    if not isinstance(buckets, Sequence) or not all(isinstance(bucket, int) for bucket in buckets):
        raise OptionError(f"buckets = {buckets!r}: expected ascending sizes of at least 1, such as (1, 8, 32).")
    if any(bucket < 1 for bucket in buckets) or list(buckets) != sorted(set(buckets)):
        raise OptionError(f"buckets = {list(buckets)}: expected ascending sizes of at least 1, such as (1, 8, 32).")
    if max_batch is not None and buckets and max_batch > buckets[-1]:
        raise OptionError(f"max_batch = {max_batch}: above the largest bucket, {buckets[-1]}.")


class RowGuard:
    """Refuse to cut, pad or merge batches of a model that mixes rows; checked once, on the first batch.

    Args:
        inputs, outputs: of the model.
        metadata: of the model, keys without prefix.
    Raises:
        UnsupportedModelError: the declared shapes do not put rows first everywhere, or a conditional block may mix
            rows.
    """

    def __init__(
        self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], metadata: Mapping[str, str]
    ) -> None:
        blocks = read_conditional(metadata)
        whole = next((block for block in blocks.blocks if block.form == "batch"), None) if blocks else None
        if whole is not None:
            raise UnsupportedModelError(
                f"batches cannot be cut, padded or merged: block '{whole.name}', which runs for some inputs only, may "
                "mix the rows of a batch. Load the model without max_batch and buckets, and do not batch it."
            )
        first = {spec.shape[0] if spec.shape else 1 for spec in (*inputs, *outputs)}
        symbol = next(iter(first), None)
        if len(first) != 1 or not isinstance(symbol, str):
            shown = "; ".join(str(spec) for spec in (*inputs, *outputs))
            raise UnsupportedModelError(
                f"batches cannot be cut, padded or merged: the first dimension of every input and output must be the "
                f"same dynamic one, found {shown}. Export the model with a dynamic batch."
            )
        self._names = [spec.name for spec in outputs]
        self._checked = False
        self._lock = threading.Lock()

    def check(self, run: RunArrays, feed: Feed) -> None:
        """Run a few rows alone and together. All of them are compared: what runs from row to row (a cumulative sum) or
        is ruled by one of them (a maximum) may well leave some rows as they are.

        Args:
            run: all outputs of a feed.
            feed: a batch; an empty one decides nothing.
        Raises:
            UnsupportedModelError: a row came out differently.
        """
        if self._checked or not all(len(array) for array in feed.values()):
            return
        with self._lock:
            one = {name: array[:1] for name, array in feed.items()}
            # company that differs from the row: the row with its values moved on, zeros, and the batch's last row
            crowd = {
                name: np.concatenate([row, np.roll(row, 1, axis=-1), np.zeros_like(row), feed[name][-1:]])
                for name, row in one.items()
            }
            alone = [run({name: rows[at : at + 1] for name, rows in crowd.items()}) for at in range(4)]
            for name, *each, together in zip(self._names, *alone, run(crowd), strict=True):
                row_shape = (1, *together.shape[1:])
                if (
                    len(together) != 4
                    or any(found.shape != row_shape for found in each)
                    or not same_values(np.concatenate(each), together)
                ):
                    raise UnsupportedModelError(
                        f"batches cannot be cut, padded or merged: output '{name}' of a row depends on the other rows "
                        "of its batch. Load the model without max_batch and buckets, and do not batch it."
                    )
            self._checked = True


class Batching:
    """Runs batches of any size in pieces."""

    def __init__(self, guard: RowGuard, max_batch: int | None, buckets: Sequence[int]) -> None:
        self._guard, self._max_batch, self._buckets = guard, max_batch, tuple(buckets)

    def run(self, run: RunArrays, feed: Feed, check: RunArrays | None = None) -> list[Any]:
        """All outputs of a feed, computed in pieces.

        Args:
            run: runs a piece.
            feed: the whole batch.
            check: runs what the guard tries, where that must not take the way of `run`.
        Raises:
            UnsupportedModelError: the model mixes rows.
        """
        rows = len(next(iter(feed.values())))
        pieces = cut(rows, self._max_batch, self._buckets)
        if len(pieces) == 1 and pieces[0].size == rows:
            return run(feed)
        self._guard.check(check or run, feed)
        results = []
        for piece in pieces:
            part = {name: pad_rows(array[piece.start : piece.stop], piece.size) for name, array in feed.items()}
            results.append([output[: piece.stop - piece.start] for output in run(part)])
        return results[0] if len(results) == 1 else [np.concatenate(parts) for parts in zip(*results, strict=True)]


def join_rows(feeds: Sequence[Feed]) -> Feed:
    """Batches of equal names, dtypes and row shapes as one.

    Raises:
        InputError: there is none.
    """
    if not feeds:
        raise InputError("no batch to join.")
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def same_values(expected: Any, found: Any) -> bool:
    """Whether two arrays are equal but for what another order of sums does to their rounding."""
    limit = _TOLERANCE.get(expected.dtype.name)
    if limit is None:
        return bool(np.array_equal(expected, found))
    expected, found = np.asarray(expected, np.float64), np.asarray(found, np.float64)
    scale = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    return bool(np.allclose(expected, found, rtol=0, atol=limit * scale, equal_nan=True))
