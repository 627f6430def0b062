"""Do two models compute the same, so that their times may be compared at all?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from l0runtime.errors import InputError, VerificationError

if TYPE_CHECKING:
    from l0runtime.session import Session

# Largest difference, relative to the largest element of the output. A float32 sum in another order is off by some
# 1e-7 of its scale for each layer, so a deep network stays below 1e-4, and one wrong weight in a thousand does not;
# float16 and bfloat16 carry 11 and 8 bits instead of 24.
_LIMITS = {"float64": 1e-10, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


@dataclass(frozen=True)
class Agreement:
    """The largest relative difference seen, the limit it was held against, and the output where it was seen."""

    difference: float
    limit: float
    output: str


def check_same_inputs(baseline: Session, candidate: Session) -> None:
    """Refuse two models that cannot be fed alike.

    Raises:
        InputError: names or dtypes of the inputs, or the number of outputs, differ.
    """
    theirs = {spec.name: spec.dtype for spec in baseline.inputs}
    ours = {spec.name: spec.dtype for spec in candidate.inputs}
    if theirs != ours:
        raise InputError(
            f"the two models take different inputs: {_shown(baseline.inputs)} against {_shown(candidate.inputs)}. "
            "Compare a compact model with the model it was made from."
        )
    if len(baseline.outputs) != len(candidate.outputs):
        raise InputError(
            f"the two models give different outputs: {_shown(baseline.outputs)} against {_shown(candidate.outputs)}. "
            "Compare a compact model with the model it was made from."
        )


def compare_outputs(baseline: Session, candidate: Session, inputs: Mapping[str, Any]) -> Agreement:
    """Run both and compare every output: by name where the names are the same, else by position.

    Raises:
        VerificationError: shapes, dtypes or values differ by more than rounding explains.
    """
    theirs, ours = baseline.run(inputs), candidate.run(inputs)
    pairs = [(name, name) for name in theirs] if theirs.keys() == ours.keys() else list(zip(theirs, ours, strict=True))
    worst: Agreement | None = None
    for name, other in pairs:
        found = _compare(name, theirs[name], ours[other])
        if worst is None or found.difference / (found.limit or 1) > worst.difference / (worst.limit or 1):
            worst = found
    assert worst is not None  # a model has at least one output
    return worst


def _compare(name: str, expected: Any, found: Any) -> Agreement:
    if expected.dtype != found.dtype or expected.shape != found.shape:
        raise VerificationError(
            f"output '{name}': {expected.dtype} {list(expected.shape)} against {found.dtype} {list(found.shape)}. "
            "The two models do not compute the same; their times are not compared."
        )
    limit = _LIMITS.get(expected.dtype.name, 0.0)
    if limit == 0.0:  # integers, bools, strings: equal or not
        difference = 0.0 if np.array_equal(expected, found) else float("inf")
    else:
        difference = relative_difference(expected.astype(np.float64), found.astype(np.float64))
    if not difference <= limit:
        raise VerificationError(
            f"output '{name}': differs by {difference:.2g} of its scale, allowed is {limit:.2g}. "
            "The two models do not compute the same; their times are not compared."
        )
    return Agreement(difference, limit, name)


def relative_difference(expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> float:
    """max |expected - found| / max |expected|; infinite where one has a NaN or an infinity that the other has not."""
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(found)):
        return float("inf")
    if not np.array_equal(expected[~finite], found[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    gap = float(np.abs(expected[finite] - found[finite]).max())
    scale = float(np.abs(expected[finite]).max())
    return 0.0 if gap == 0 else (gap / scale if scale else float("inf"))


def _shown(specs: Any) -> str:
    return "; ".join(str(spec) for spec in specs)
