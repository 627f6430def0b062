"""Is a compact model exactly equal to the gated one, but for the rounding of its weights?

The gated model is compacted a second time, all in float64. That twin must equal the gated model to 1e-10 of the
output's scale, and the model that ships must be the twin with its weights rounded: the same operators, and every
weight within a few roundings. Together that is a much sharper check than running float32 against float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from converters.comparison import EPSILON, Difference, compare_all, largest
from converters.float64 import evaluate, reason_against, upcast

if TYPE_CHECKING:
    from collections.abc import Mapping

    from converters.compaction import Widths

    Array = np.ndarray[Any, Any]

LIMIT = 1e-10
_ROUNDINGS = 4  # a fold multiplies, adds and rounds; each step may move a weight by one rounding of its tensor's scale


@dataclass(frozen=True)
class Exactness:
    """What the float64 check found.

    Args:
        difference: gated against its twin in float64, the worst of all outputs and batches.
        misrounded: why the shipped model is not the twin with rounded weights; None if it is. A tuple (weight name or
            "", reason); "" stands for another structure.
        shipped: gated against the shipped model, both in float64; only its weights are rounded.
        gated_outputs: outputs of the gated model in float64, per batch.
    """

    difference: Difference
    misrounded: tuple[str, str] | None
    shipped: Difference
    gated_outputs: tuple[list[Array], ...]


def check_exactly(
    gated: str | Path,
    compact: str | Path,
    batches: Sequence[tuple[str, Mapping[str, Array]]],
    widths: Widths | None = None,
) -> Exactness | str:
    """Run the float64 check on named batches of inputs; a string says why this model cannot be judged so.

    Args:
        widths: what the compact model was padded with.
    """
    from converters.compaction import compact as remove
    from converters.compaction.normalise import fold_constants

    model = ir.load(str(gated))
    shipped = ir.load(str(compact))
    for part in (model, shipped):
        if (reason := reason_against(part)) is not None:
            return reason
        ir.external_data.load_to_model(part)  # onnx.reference reads no data files, and integers stay as they are
        _inline(part)
    # gates are evaluated in their own type, as everywhere else: what follows is about the same constants
    fold_constants(model.graph)
    upcast(model)
    gated_proto = ir.to_proto(model)
    twin = remove(model, widths).model
    twin_proto = ir.to_proto(twin)
    misrounded = _not_rounded_from(shipped, twin)
    upcast(shipped)
    shipped_proto = ir.to_proto(shipped)
    names = [value.name or "" for value in model.graph.outputs]
    twins: list[Difference] = []
    ships: list[Difference] = []
    outputs: list[list[Array]] = []
    for batch, feed in batches:
        try:
            expected = evaluate(gated_proto, feed)
        except Exception as error:  # an operator, or a case of one, that onnx.reference lacks
            return f"onnx.reference cannot run it ({type(error).__name__}: {error})"
        outputs.append(expected)
        twins += compare_all(names, batch, expected, evaluate(twin_proto, feed))
        ships += compare_all(names, batch, expected, evaluate(shipped_proto, feed))
    return Exactness(largest(twins), misrounded, largest(ships), tuple(outputs))


def _inline(model: ir.Model) -> None:
    from onnx_ir.passes import common as passes

    if model.functions:
        passes.InlinePass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True)(model)


def _not_rounded_from(shipped: ir.Model, twin: ir.Model) -> tuple[str, str] | None:
    """Compare operators and weights of the shipped model (not yet upcast) with its float64 twin."""
    ours = [node.op_identifier() for node in shipped.graph.all_nodes()]
    theirs = [node.op_identifier() for node in twin.graph.all_nodes()]
    if ours != theirs:
        return "", f"it has {len(ours)} operators, its float64 twin {len(theirs)}, or others"
    weights, exact = shipped.graph.initializers, twin.graph.initializers
    if weights.keys() != exact.keys():
        return "", f"its weights are named otherwise than its float64 twin's: {sorted(weights.keys() ^ exact.keys())}"
    for name, value in weights.items():
        if value.const_value is None or exact[name].const_value is None:
            continue
        reason = _weight_differs(value.const_value, exact[name].const_value)
        if reason is not None:
            return name, reason
    return None


def _weight_differs(found: ir.TensorProtocol, exact: ir.TensorProtocol | None) -> str | None:
    assert exact is not None
    if tuple(found.shape) != tuple(exact.shape):
        return f"shape {list(found.shape)}, expected {list(exact.shape)}"
    a, b = found.numpy(), exact.numpy()
    if b.dtype != np.float64 or not a.size:
        return None if np.array_equal(a, b) else "integers differ"
    with np.errstate(invalid="ignore"):
        # masks hold -inf on purpose
        error = np.where(a == b, 0, np.abs(a.astype(np.float64) - b))
    scale = float(np.abs(b[np.isfinite(b)]).max(initial=0))
    allowed = _ROUNDINGS * EPSILON[found.dtype] * scale
    if float(error.max()) <= allowed:  # NaN, of an infinity against a number, is not
        return None
    place = tuple(int(i) for i in np.unravel_index(int(error.argmax()), error.shape))
    return f"{float(a[place]):.7g} at {list(place)}, expected {float(b[place]):.7g}"
