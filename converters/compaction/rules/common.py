"""What do several rule files share: attribute access, constant operands, weights as matrices, folding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.axes import (
    Axis,
    Constants,
    Facts,
    Liveness,
    Mask,
    Twins,
    array_of,
    as_float64,
    rank,
    static_size,
)


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    """A float attribute or its default; both are float32 in the format, so that 0.01 is rounded in either case."""
    attribute = node.attributes.get(name)
    return float(np.float32(default)) if attribute is None else attribute.as_float()


def string_attribute(node: ir.Node, name: str, default: str) -> str:
    """A string attribute or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def ints_attribute(node: ir.Node, name: str) -> list[int] | None:
    """A list-of-integers attribute, None when absent."""
    attribute = node.attributes.get(name)
    return None if attribute is None else list(attribute.as_ints())


def operand(node: ir.Node, slot: int) -> ir.Value | None:
    """Input `slot`, None when it is absent or left out."""
    return node.inputs[slot] if slot < len(node.inputs) else None


def constant_ints(node: ir.Node, slot: int) -> list[int] | None:
    """Input `slot` as a list of integers when it is a constant of any rank, else None."""
    array = array_of(operand(node, slot))
    return None if array is None else [int(number) for number in array.ravel()]


def axis_of(value: ir.Value | None, dim: int) -> Axis | None:
    """The axis at `dim` (negative counts from the end), None if it carries no vectors."""
    if value is None or value.shape is None:
        return None
    dim = dim + len(value.shape) if dim < 0 else dim
    size = static_size(value, dim)
    return Axis(value, dim) if size is not None and size > 1 else None


def axes_at(values: Sequence[ir.Value | None], dim: int) -> list[Axis]:
    """The axes at `dim` of those values that have one there."""
    return [axis for value in values if (axis := axis_of(value, dim)) is not None]


def same_rank(*values: ir.Value | None) -> bool:
    """Whether all present values have a known and equal rank."""
    ranks = {rank(value) for value in values if value is not None}
    return len(ranks) == 1 and None not in ranks


def nonzero_matrix(weight: NDArray[np.generic], rows: int, columns: int) -> Mask:
    """Which entries of a weight of dimensions (rows, columns, *kernel) have a nonzero, as a matrix.

    Returns: bool, shape [weight.shape[rows], weight.shape[columns]].
    """
    matrix: Mask = np.moveaxis(weight, (rows, columns), (0, 1)) != 0
    return np.logical_or.reduce(matrix.reshape(*matrix.shape[:2], -1), axis=2) if matrix.ndim > 2 else matrix


def columns_read(weight: NDArray[np.generic], rows: int, columns: int, row_needed: Mask) -> Mask:
    """Which columns have a nonzero weight in some needed row; shape [weight.shape[columns]].

    Most trained weights have no zero column, which a few rows show without reading the whole matrix.
    """
    wanted = np.flatnonzero(row_needed)
    read = np.zeros(weight.shape[columns], bool)
    for chunk in (wanted[:4], wanted[4:]):
        if chunk.size and not read.all():
            missing = np.flatnonzero(~read)
            part = np.take(np.take(weight, chunk, axis=rows), missing, axis=columns)
            read[missing] = nonzero_matrix(part, rows, columns).any(axis=0)
    return read


def row_constants(
    weight: NDArray[np.generic],
    rows: int,
    columns: int,
    inputs: Constants | None,
    *,
    only_zero_inputs: bool,
    zero_rows: Mask,
) -> Constants:
    """Constant value of each output of a contraction without its bias, NaN where it is unknown.

    Args:
        inputs: constants of the contracted axis, None when nothing is known.
        only_zero_inputs: a nonzero constant does not give a constant output (it meets zero padding).
        zero_rows: rows whose weights are all zero.
    """
    outputs = np.where(zero_rows, 0.0, np.nan)
    if inputs is None:
        return outputs
    usable = (inputs == 0) if only_zero_inputs else ~np.isnan(inputs)
    if not usable.any():
        return outputs
    unknown = np.flatnonzero(~usable)
    depends = np.zeros(weight.shape[rows], bool)
    for chunk in (unknown[:4], unknown[4:]):
        if chunk.size and not depends.all():
            missing = np.flatnonzero(~depends)
            part = np.take(np.take(weight, chunk, axis=columns), missing, axis=rows)
            depends[missing] = nonzero_matrix(part, rows, columns).any(axis=1)
    known = np.flatnonzero(~depends)
    if known.size:
        part = np.moveaxis(as_float64(np.take(weight, known, axis=rows)), (rows, columns), (0, 1))
        sums = part.reshape(*part.shape[:2], -1).sum(axis=2)
        outputs[known] = sums @ np.where(usable, inputs, 0.0)
    return outputs


def need_of(live: Liveness, axis: Axis | None, size: int) -> Mask:
    """Need of an axis; an axis of length 1 (which carries no vectors) counts as needed."""
    return np.ones(size, bool) if axis is None else live.needed(axis)


def constants_of(facts: Facts, value: ir.Value | None, dim: int, size: int) -> Constants:
    """Constants along `dim`, the scalar where the value has length 1 there, NaN where unknown; shape [size]."""
    if value is None:
        return np.full(size, np.nan)
    axis = axis_of(value, dim)
    if axis is None:
        return np.full(size, facts.scalar(value))
    known = facts.constants(axis)
    return np.full(size, np.nan) if known is None else known


def merge_twins(
    weight: Constants, inner: int, going: NDArray[np.int64], stays: int, twins: Twins
) -> tuple[Constants, Constants]:
    """Let one twin take over the weights of others: the weights, and what is added to the sum besides.

    Slice k is scales[k] * u + offsets[k], so its share weight[k] * slice k equals
    weight[k] * ratio * slice r + weight[k] * (offsets[k] - ratio * offsets[r]), ratio = scales[k] / scales[r].

    Args:
        weight: at full size; `inner` is its contracted dimension.
        going: indices that are removed; stays: the index r that takes over.
    Returns:
        (weights at full size, added: the other dimensions of the weight).
    """
    ratio = twins.scales[going] / twins.scales[stays]
    part = np.moveaxis(np.take(weight, going, axis=inner), inner, -1)
    merged = np.moveaxis(weight.copy(), inner, -1)
    merged[..., stays] += part @ ratio
    return np.moveaxis(merged, -1, inner), part @ (twins.offsets[going] - ratio * twins.offsets[stays])


def agreed_constants(axes: Sequence[Axis]) -> Callable[[Facts], Constants | None]:
    """The transfer of an output whose slice i is put together from slice i of each of these axes."""

    def transfer(facts: Facts) -> Constants | None:
        agreed = facts.constants(axes[0])
        for axis in axes[1:]:
            known = facts.constants(axis)
            agreed = None if agreed is None or known is None else np.where(agreed == known, agreed, np.nan)
        return agreed

    return transfer
