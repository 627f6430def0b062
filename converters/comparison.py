"""By how much do two lists of outputs differ, and how much may they?

A difference is taken relative to the output's scale, the largest absolute value of the reference's output. The limit is
what rounding explains: a sum of K products, added in another order or with fewer terms, moves by about
sqrt(K) * epsilon / 2 of its scale on either side, so two such sums differ by about sqrt(K) * epsilon. K is the longest
contraction in the model. What is measured on real networks is a tenth of that (1e-7 to 1e-6 for float32).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]

_SHORTEST = 64  # elementwise functions round too: no limit is tighter than that of a sum of 64
# distance from 1 to the next number
EPSILON = {
    ir.DataType.DOUBLE: 2.0**-52,
    ir.DataType.FLOAT: 2.0**-23,
    ir.DataType.FLOAT16: 2.0**-10,
    ir.DataType.BFLOAT16: 2.0**-7,
}
_NAMES = {
    ir.DataType.DOUBLE: "float64",
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
}


@dataclass(frozen=True)
class Limit:
    """The largest difference that rounding explains.

    Args:
        relative: the limit, of an output's scale.
        dtype: the coarsest floating-point type of the model, "float32".
        reason: where the limit comes from, in words.
    """

    relative: float
    dtype: str
    reason: str


@dataclass(frozen=True)
class Difference:
    """The largest difference found in one output of one batch.

    Args:
        output: name of the output.
        batch: shapes of the inputs it came from, "x 2x1x28x28".
        relative: largest absolute difference over the scale; inf where values that must be equal are not (NaN,
            infinities, shapes, integers, anything where the reference is all zero).
        reason: what is wrong, with the place and both values; "" for equal outputs.
    """

    output: str
    batch: str
    relative: float
    reason: str = ""


def rounding_limit(model: ir.Model) -> Limit:
    """The limit for a model, from the shapes and types of its weights."""
    longest = max([_SHORTEST, *(_terms(node) for node in model.graph.all_nodes())])
    # scalars (an epsilon, a scale) may be of another type than what they meet
    weights = [value for value in model.graph.initializers.values() if value.shape is not None and len(value.shape)]
    dtypes = {value.dtype for value in [*model.graph.inputs, *weights] if value.dtype in EPSILON}
    dtype = max(dtypes, key=lambda dtype: EPSILON[dtype], default=ir.DataType.FLOAT)
    reason = f"rounding of {_NAMES[dtype]} sums of up to {longest} terms, epsilon * sqrt(terms)"
    return Limit(EPSILON[dtype] * math.sqrt(longest), _NAMES[dtype], reason)


def compare(name: str, batch: str, reference: Array, other: Array) -> Difference:
    """Compare one output of one batch.

    NaN is a difference even against NaN: a model that gives NaN cannot be verified on that input.
    """
    if reference.shape != other.shape:
        return Difference(name, batch, math.inf, f"shape {list(reference.shape)} became {list(other.shape)}")
    if not _is_float(reference):
        wrong = np.argwhere(reference != other)
        if not len(wrong):
            return Difference(name, batch, 0.0)
        share = f"{len(wrong)} of {reference.size} values differ"
        return Difference(name, batch, math.inf, f"{share}, {_values_at(wrong[0], reference, other)}")
    before, after = reference.astype(np.float64), other.astype(np.float64)
    for array, whose in ((before, "the gated model"), (after, "the compact model")):
        if np.isnan(array).any():
            count = int(np.isnan(array).sum())
            return Difference(name, batch, math.inf, f"{whose} gives NaN in {count} of {array.size} values")
    finite = np.isfinite(before)
    if not np.array_equal(before[~finite], after[~finite]) or not np.isfinite(after[finite]).all():
        place = np.argwhere((finite != np.isfinite(after)) | (~finite & (before != after)))[0]
        return Difference(name, batch, math.inf, f"infinities differ, {_values_at(place, reference, other)}")
    if not finite.any():
        return Difference(name, batch, 0.0)
    error = np.where(finite, np.abs(np.where(finite, before, 0) - np.where(finite, after, 0)), 0)
    worst = np.unravel_index(int(error.argmax()), error.shape)
    largest, scale = float(error[worst]), float(np.abs(before[finite]).max())
    if largest == 0:
        return Difference(name, batch, 0.0)
    relative = largest / scale if scale else math.inf
    return Difference(name, batch, relative, f"{_values_at(worst, reference, other)}, scale {scale:.3g}")


def compare_all(
    names: Sequence[str], batch: str, reference: Sequence[Array], other: Sequence[Array]
) -> list[Difference]:
    """Compare every output of one batch; a missing or additional output is a difference."""
    if len(reference) != len(other):
        return [Difference("", batch, math.inf, f"{len(reference)} outputs became {len(other)}")]
    return [compare(name, batch, *pair) for name, *pair in zip(names, reference, other, strict=True)]


def largest(differences: Iterable[Difference]) -> Difference:
    """The worst of them."""
    return max(differences, key=lambda difference: difference.relative)


def _terms(node: ir.Node) -> int:
    """Products that one output element of a contraction with constant weights adds up; 0 for other operators."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
        return 0
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is None or weight.const_value is None:
        return 0
    shape = tuple(int(size) for size in weight.const_value.numpy().shape)
    if node.op_type == "Conv":
        return math.prod(shape[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(shape) // max(shape[1], 1)
    if node.op_type == "Gemm":
        is_transposed = "transB" in node.attributes and node.attributes["transB"].as_int()
        return shape[1] if is_transposed else shape[0]
    return shape[-2] if len(shape) > 1 else shape[0]


def _is_float(array: Array) -> bool:
    return bool(array.dtype.kind == "f" or array.dtype.name == "bfloat16")


def _values_at(index: Sequence[Any], reference: Array, other: Array) -> str:
    place = tuple(int(position) for position in index)
    where = f" at {list(place)}" if place else ""
    return f"{_written(reference[place])} became {_written(other[place])}{where}"


def _written(value: Any) -> str:
    return f"{float(value):.7g}" if np.asarray(value).dtype.kind in "fV" else str(value)
