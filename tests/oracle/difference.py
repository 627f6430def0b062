"""How far apart are two lists of outputs, relative to the scale of the first?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def relative_difference(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Largest max|expected - found| / max|expected| over the outputs; infinity where they cannot be compared.

    Integers and booleans count as equal or as infinitely far apart. A shape that differs, a NaN or an infinity on one
    side only, and a different number of outputs are infinitely far apart. An output that is zero everywhere has no
    scale, so its absolute difference counts.
    """
    if len(expected) != len(found):
        return float("inf")
    return max((_one(np.asarray(e), np.asarray(f)) for e, f in zip(expected, found, strict=True)), default=0.0)


def _one(expected: np.ndarray, found: np.ndarray) -> float:
    if expected.shape != found.shape:
        return float("inf")
    if expected.size == 0:
        return 0.0
    if expected.dtype.kind in "biu":
        return 0.0 if np.array_equal(expected, found) else float("inf")
    e, f = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(e)
    if not np.array_equal(finite, np.isfinite(f)) or not np.array_equal(e[~finite], f[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = float(np.abs(e[finite]).max())
    return float(np.abs(e[finite] - f[finite]).max()) / (scale if scale > 0 else 1.0)
