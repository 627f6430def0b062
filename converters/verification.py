"""Do a gated and a compact model compute the same function?

Both run in onnxruntime on the CPU, on several batches: the example inputs, then signed random inputs of several batch
sizes and, where they may vary, image sizes or lengths. Every output is compared (comparison.py), and so are the outputs
of the torch module that the gated model was exported from. Small models are checked in float64 besides
(exactness.py), large ones on request, and any model whose float32 difference exceeds what rounding explains: where a
variance is about 0, float32 is off on both sides, and only float64 can tell.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from converters.batches import Batch, Runner, make_batches, shapes_of_one
from converters.comparison import Difference, Limit, compare_all, largest, rounding_limit
from converters.exactness import LIMIT as EXACT_LIMIT
from converters.exactness import Exactness, check_exactly
from l0runtime.errors import UnsupportedModelError, VerificationError
from l0runtime.measurement.cost import count_cost

if TYPE_CHECKING:
    import numpy as np

    from converters.compaction import Widths

    Array = np.ndarray[Any, Any]
    Reference = Callable[[Mapping[str, Array]], Sequence[Array]]

# a model with less work than this per batch element is checked in float64 unasked: it takes about a second
_SMALL_MACS = 300_000_000
_SMALL_PARAMETERS = 20_000_000


@dataclass(frozen=True)
class Verification:
    """Figures of a verification that succeeded; differences are relative to the output's scale.

    Args:
        batches: shapes of the inputs of each batch, e.g. "x 2x1x28x28".
        shapes: input shapes of one example, at which multiply-accumulates are counted.
        outputs: the largest difference per output name, gated against compact in onnxruntime; empty where onnxruntime
            has no kernels for the model (bfloat16).
        limit: what rounding explains, and `limit_reason` in words.
        torch: the largest difference of the torch module against compact; None for other sources.
        float64: the largest difference in float64; None where it was not checked, `float64_skipped` says why.
        decided_by: "float32", or "float64" where the float32 difference exceeds the limit.
    """

    batches: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    outputs: dict[str, float]
    limit: float
    limit_reason: str
    torch: float | None
    float64: float | None
    float64_skipped: str | None
    decided_by: str

    @property
    def largest(self) -> float | None:
        """The largest difference between gated and compact in onnxruntime."""
        return max(self.outputs.values(), default=None)

    def to_json(self) -> dict[str, Any]:
        """Plain data, ready for json.dumps."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def verify(
    gated: str | Path,
    compact: str | Path,
    inputs: Sequence[Mapping[str, Array]] | None = None,
    *,
    example: Mapping[str, Array] | None = None,
    reference: Reference | None = None,
    reference64: Callable[[], Reference] | None = None,
    exact: bool | None = None,
    widths: Widths | None = None,
    seed: int = 0,
) -> Verification:
    """Compare two ONNX files; returns the figures, or raises.

    Args:
        gated, compact: paths of the two models.
        inputs: batches to compare on, by input name; None makes them.
        example: inputs whose sizes, and ranges of integers, the made batches follow.
        reference: the torch module itself, from inputs by name to outputs in order; compared with `compact`.
        reference64: makes the same in float64, asked where float32 cannot tell.
        exact: check in float64 too; None does so for small models and in doubtful cases.
        widths: what the compact model was padded with, so that its float64 twin is padded alike.
        seed: of the random inputs.
    Raises:
        VerificationError: a difference that rounding does not explain, or NaN.
        UnsupportedModelError: the gated model does not run, or exact=True for a model that float64 cannot judge.
    """
    model = ir.load(str(gated))
    names = [value.name or "" for value in model.graph.outputs]
    _check_interface(model, ir.load(str(compact)))
    limit = rounding_limit(model)
    batches = make_batches(gated, inputs, example=example, seed=seed)
    shapes = shapes_of_one(gated, batches[0].feed)
    differences: list[Difference] = []
    torch_differences: list[Difference] = []
    if all(batch.outputs is not None for batch in batches):
        runner = Runner(compact)
        for batch in batches:
            assert batch.outputs is not None
            found = runner.run(batch.feed)
            if isinstance(found, str):
                raise VerificationError(f"{batch.name}: the compact model does not run where the gated does ({found}).")
            differences += compare_all(names, batch.name, batch.outputs, found)
            if reference is not None:
                torch_differences += compare_all(names, batch.name, reference(batch.feed), found)
    doubtful = not differences or max(d.relative for d in [*differences, *torch_differences]) > limit.relative
    for difference in [*differences, *torch_differences]:
        if difference.relative == float("inf") and "NaN" in difference.reason:
            raise _mismatch(difference, limit)
    exactness: Exactness | str = "not asked for, and the model is large"
    if exact or doubtful or (exact is None and (limit.dtype != "float32" or _is_small(gated, shapes))):
        exactness = check_exactly(gated, compact, [(batch.name, batch.feed) for batch in batches], widths)
    elif exact is False:
        exactness = "switched off"
    if isinstance(exactness, str):
        if exact:
            raise UnsupportedModelError(
                f"{gated}: cannot be checked in float64: {exactness}. Leave out the exact check."
            )
        if not differences:
            raise UnsupportedModelError(
                f"{gated}: onnxruntime cannot run it on the CPU, and it cannot be checked in float64: {exactness}."
            )
        if doubtful:
            raise _mismatch(largest([*differences, *torch_differences]), limit, f" float64 cannot judge: {exactness}.")
    else:
        _require_exact(exactness, limit)
        if reference64 is not None and (not differences or _exceeds(torch_differences, limit)):
            _require_same_module(reference64(), batches, exactness, names, limit)
        elif _exceeds(torch_differences, limit):
            raise _mismatch(largest(torch_differences), limit, " The torch module and the compact model differ.")
    return Verification(
        batches=tuple(batch.name for batch in batches),
        shapes=shapes,
        outputs=_worst_per_output(differences),
        limit=limit.relative,
        limit_reason=limit.reason,
        torch=max((d.relative for d in torch_differences), default=None),
        float64=None if isinstance(exactness, str) else exactness.difference.relative,
        float64_skipped=exactness if isinstance(exactness, str) else None,
        decided_by="float64" if doubtful else "float32",
    )


def _check_interface(gated: ir.Model, compact: ir.Model) -> None:
    """Same names, types and ranks of inputs and outputs."""
    for kind in ("inputs", "outputs"):
        before = [_signature(value) for value in getattr(gated.graph, kind)]
        after = [_signature(value) for value in getattr(compact.graph, kind)]
        if before != after:
            raise VerificationError(
                f"{kind} of the gated model are {', '.join(before)}; of the compact {', '.join(after)}."
            )


def _signature(value: ir.Value) -> str:
    return f"{value.name} {value.dtype}{value.shape}"


def _require_exact(exactness: Exactness, limit: Limit) -> None:
    """Raise unless the float64 twin is equal and the shipped model is its rounding."""
    if exactness.difference.relative > EXACT_LIMIT:
        exact_limit = Limit(EXACT_LIMIT, "float64", "in float64, where only the order of sums may differ")
        raise _mismatch(exactness.difference, exact_limit)
    if exactness.misrounded is None:
        return
    weight, reason = exactness.misrounded
    if weight:
        raise VerificationError(
            f"weight '{weight}' of the compact model is not the rounding of its exact value: {reason}. "
            "No file was written. Please report this model: the compact model would be wrong."
        )
    # another structure than the twin's, such as another choice among equals: judged by its function, weights rounded
    if exactness.shipped.relative > limit.relative:
        raise _mismatch(exactness.shipped, limit, f" Checked in float64; {reason}.")


def _require_same_module(
    reference: Reference, batches: Sequence[Batch], exactness: Exactness, names: Sequence[str], limit: Limit
) -> None:
    """Raise unless the torch module, in float64, gives what the exported graph gives."""
    differences: list[Difference] = []
    for batch, outputs in zip(batches, exactness.gated_outputs, strict=True):
        differences += compare_all(names, batch.name, reference(batch.feed), outputs)
    if _exceeds(differences, limit):
        raise _mismatch(largest(differences), limit, " The torch module and its export differ, in float64.")


def _exceeds(differences: Sequence[Difference], limit: Limit) -> bool:
    return any(difference.relative > limit.relative for difference in differences)


def _mismatch(difference: Difference, limit: Limit, addition: str = "") -> VerificationError:
    return VerificationError(
        f"output '{difference.output}' on {difference.batch}: {difference.reason}; "
        f"a difference of {difference.relative:.2g} of the output's scale, the limit is {limit.relative:.2g} "
        f"({limit.reason}).{addition} No file was written. Please report this model: the compact model would be wrong."
    )


def _worst_per_output(differences: Sequence[Difference]) -> dict[str, float]:
    worst: dict[str, float] = {}
    for difference in differences:
        worst[difference.output] = max(difference.relative, worst.get(difference.output, 0.0))
    return worst


def _is_small(path: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    cost = count_cost(path, shapes=shapes)
    return cost.parameters <= _SMALL_PARAMETERS and cost.macs <= _SMALL_MACS
