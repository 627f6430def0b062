"""Does a conditional model compute what the masked one computes, on every path?

Random inputs may never take some path. So the gates of both models are replaced by inputs, and all paths are driven:
everything runs, nothing runs, each block alone runs for some samples, and random choices. Small models are compared in
float64 too. That comes on top of the comparison of the file as it is, with its own gates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from converters.batches import Batch, Runner
from converters.comparison import Difference, compare_all, largest, rounding_limit
from converters.exactness import LIMIT as EXACT_LIMIT
from converters.float64 import evaluate, reason_against, upcast
from l0runtime.conditional import ConditionalModel
from l0runtime.conditional.forcing import force_gates, forced_inputs
from l0runtime.errors import VerificationError

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

_SMALL_MACS = 30_000_000  # of a batch: beyond it the float64 reference takes more than seconds
_RANDOM_CHOICES = 2
_FRACTIONS = (0.25, 0.5, 1.0)  # values of an open gate that is no step


def check_conditional(
    masked: Path, conditional: Path, model: ConditionalModel, batches: Sequence[Batch], folder: Path
) -> float:
    """Compare two files on their own gates and on driven ones; returns the largest difference, of the output's scale.

    Args:
        masked, conditional: the two files.
        model: the blocks of the conditional one.
        batches: inputs, with what the masked model gives for them where it runs in onnxruntime.
        folder: where files for the comparison may be written.
    Raises:
        VerificationError: a difference that rounding does not explain.
    """
    own = ir.load(str(masked))
    limit = rounding_limit(own)
    names = [value.name or "" for value in own.graph.outputs]
    forced = {}
    for which, path in (("masked", masked), ("conditional", conditional)):
        forced[which] = folder / f"forced_{which}.onnx"
        onnx.save(force_gates(onnx.load(str(path)), model), str(forced[which]))
    differences: list[Difference] = []
    runners = {which: Runner(path) for which, path in forced.items()}
    as_it_is = Runner(conditional)
    for batch in batches:
        if batch.outputs is not None:
            differences += _compare(names, batch.name, batch.outputs, as_it_is.run(batch.feed))
        for name, choice in _choices(model, _rows(batch.feed)):
            feed = {**batch.feed, **choice}
            expected = runners["masked"].run(feed)
            if isinstance(expected, str):
                raise VerificationError(f"{batch.name}, {name}: the masked model does not run ({expected}).")
            differences += _compare(names, f"{batch.name}, {name}", expected, runners["conditional"].run(feed))
    worst = largest(differences)
    if worst.relative > limit.relative:
        raise _mismatch(worst, limit.relative)
    _check_in_float64(forced, model, batches, names)
    return worst.relative


def _compare(
    names: Sequence[str], batch: str, expected: Sequence[Array], found: Sequence[Array] | str
) -> list[Difference]:
    if isinstance(found, str):
        raise VerificationError(f"{batch}: the conditional model does not run where the masked one does ({found}).")
    return compare_all(names, batch, expected, found)


def _check_in_float64(
    forced: Mapping[str, Path], model: ConditionalModel, batches: Sequence[Batch], names: Sequence[str]
) -> None:
    """A random choice on the smallest batch of more than one sample, where that takes seconds at most."""
    several = [batch for batch in batches if _rows(batch.feed) > 1] or list(batches)
    batch = min(several, key=lambda batch: _rows(batch.feed))
    if model.macs_masked * _rows(batch.feed) > _SMALL_MACS:
        return
    protos = {}
    for which, path in forced.items():
        twin = ir.load(str(path))
        if reason_against(twin) is not None:
            return
        upcast(twin)
        protos[which] = ir.to_proto(twin)
    for name, choice in _choices(model, _rows(batch.feed)):
        if not name.startswith("random"):
            continue
        feed = {**batch.feed, **choice}
        try:
            expected = evaluate(protos["masked"], feed)
        except Exception:  # an operator that onnx.reference lacks: float32 has been compared
            return
        worst = largest(compare_all(names, f"{batch.name}, {name}", expected, evaluate(protos["conditional"], feed)))
        if worst.relative > EXACT_LIMIT:
            raise _mismatch(worst, EXACT_LIMIT)


def _rows(feed: Mapping[str, Array]) -> int:
    return int(next(iter(feed.values())).shape[0])


def _choices(model: ConditionalModel, rows: int) -> Iterator[tuple[str, dict[str, Array]]]:
    """Named decisions for all gates: all, none, each gate alone, and at random."""
    gates = forced_inputs(model)
    binary = {block.gate: block.is_binary for block in model.blocks}
    generator = np.random.default_rng(0)

    def values(gate: str, runs: Array) -> Array:
        numbers = np.ones(rows) if binary[gate] else generator.choice(_FRACTIONS, rows)
        return np.asarray(np.where(runs, numbers, 0.0), np.float32)

    everyone, nobody = np.ones(rows, bool), np.zeros(rows, bool)
    yield "all gates open", {name: values(gate, everyone) for gate, name in gates.items()}
    yield "all gates closed", {name: values(gate, nobody) for gate, name in gates.items()}
    for alone in gates:
        some = generator.permutation(rows) < max(1, rows // 2)
        yield (
            f"gate {alone} alone",
            {name: values(gate, some if gate == alone else nobody) for gate, name in gates.items()},
        )
    for number in range(_RANDOM_CHOICES):
        yield (
            f"random gates {number}",
            {name: values(gate, generator.random(rows) < 0.5) for gate, name in gates.items()},
        )


def _mismatch(difference: Difference, limit: float) -> VerificationError:
    return VerificationError(
        f"output '{difference.output}' on {difference.batch}: {difference.reason}; a difference of "
        f"{difference.relative:.2g} of the output's scale between the masked and the conditional model, the limit is "
        f"{limit:.2g}. No file was written. Please report this model: the conditional model would be wrong."
    )
