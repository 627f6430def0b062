"""Where the heads of an attention have different features closed: may each head have its closed features last?

Features of a head are one axis for all heads, so a feature goes only where every head can do without it. But their
order inside a head is free as long as queries and keys, or values and the projection behind them, agree on it. With
the closed ones last in every head, as many go as the fullest head has closed.

A value feature is closed in a head if the value is zero there or nobody reads the output there, a feature of queries
and keys if one of both is zero. On the way the numbers of one side are set to zero at what is closed, which changes
nothing, so that what stands at the same place in different heads is closed for one reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.analysis import Analysis
from converters.compaction.axes import Axis, Mask, array_of, axes_of, rank, static_size
from converters.compaction.feature_chains import (
    Chain,
    Heads,
    Merged,
    chain_before,
    chain_behind,
    heads_before,
    heads_behind,
    is_standard,
)
from converters.compaction.rules.common import int_attribute


@dataclass(frozen=True)
class Reordered:
    """Features of the heads on the last axis of a value, in a new order.

    Attributes:
        order: for each place of the axis the place that it held before.
    """

    value: str
    order: tuple[int, ...]


def order_features(graph: ir.Graph, analysis: Analysis) -> list[Reordered]:
    """Permute weights around attention so that closed features come last in each head.

    Returns:
        What was reordered; the analysis must then be made anew, because it holds the old numbers.
    """
    done: list[Reordered] = []
    for node in graph:
        if is_standard(node, "MatMul") and not any(array_of(value) is not None for value in node.inputs):
            a, b = node.inputs
            size = None if b is None else rank(b)
            if a is None or b is None or size is None or size < 3 or rank(a) is None:
                continue
            # features on the last axis of b: values; on the last of a and the last but one of b: queries and keys
            done += _order_values(analysis, heads_behind(b, size - 1, analysis.of_node), _result(analysis, node))
            scores = heads_behind(a, (rank(a) or 0) - 1, analysis.of_node)
            done += _order_scores(analysis, scores, heads_behind(b, size - 2, analysis.of_node))
        elif is_standard(node, "Attention") and not any(node.inputs[4:6]) and not _shows_keys(node):
            query, key, value = (_operand(analysis, node, slot) for slot in range(3))
            done += _order_values(analysis, value, _result(analysis, node))
            done += _order_scores(analysis, query, key)
    return done


def _shows_keys(node: ir.Node) -> bool:
    return any(extra.uses() or extra.is_graph_output() for extra in node.outputs[1:])


def _operand(analysis: Analysis, node: ir.Node, slot: int) -> Heads | None:
    value = node.inputs[slot]
    if value is None:
        return None
    if rank(value) == 4:
        found = heads_behind(value, 3, analysis.of_node)
        return found if found is not None and _repeats_evenly(node, slot, found) else None
    heads = int_attribute(node, "kv_num_heads" if slot else "q_num_heads", 0)
    repeat = int_attribute(node, "q_num_heads", 0) // heads if slot and heads else 1
    width = Axis(value, 2).size if axes_of(value) and axes_of(value)[-1].dim == 2 else 0
    if not heads or not width or width % heads:
        return None
    return Heads(Merged(value, 0, heads, width // heads), 3, np.repeat(np.arange(heads), repeat))


def _repeats_evenly(node: ir.Node, slot: int, found: Heads) -> bool:
    # the operator repeats key heads by itself, which the product of separate nodes does not
    heads = [None if value is None else static_size(value, 1) for value in (node.inputs[0], node.inputs[slot])]
    return heads[0] is not None and heads[0] == heads[1] and found.axis == 3


def _result(analysis: Analysis, node: ir.Node) -> Heads | None:
    output = node.outputs[0]
    if node.op_type == "MatMul" or rank(output) == 4:
        return heads_before(output, analysis.of_node)
    heads = int_attribute(node, "q_num_heads", 0)
    width = Axis(output, 2).size if axes_of(output) and axes_of(output)[-1].dim == 2 else 0
    if not heads or not width or width % heads:
        return None
    return Heads(Merged(output, 0, heads, width // heads), 3, np.arange(heads))


def _order_values(analysis: Analysis, value: Heads | None, result: Heads | None) -> list[Reordered]:
    if value is None or result is None or not _fit(value, result):
        return []
    zero = _block(value.merged, analysis.facts.is_zero(_last(value.merged)))
    unread = _block(result.merged, ~analysis.live.needed(_last(result.merged)))
    zero_too = _block(result.merged, analysis.facts.is_zero(_last(result.merged)))
    order = _closed_last(zero | _in_all(unread | zero_too, value.index, zero.shape[0]))
    if order is None:
        return []
    behind, before = chain_behind(value.merged), chain_before(result.merged)
    if behind is None or before is None:
        return []
    closed, places = order
    _permute(behind, value.merged, places, None)
    _permute(before, result.merged, places[value.index], closed[value.index])
    return [_reordered(value.merged, places), _reordered(result.merged, places[value.index])]


def _order_scores(analysis: Analysis, query: Heads | None, key: Heads | None) -> list[Reordered]:
    if (
        query is None
        or key is None
        or not _fit(query, key)
        or not np.array_equal(query.index, np.arange(query.merged.heads))
    ):
        return []
    zero = _block(key.merged, analysis.facts.is_zero(_last(key.merged)))
    queries = _block(query.merged, analysis.facts.is_zero(_last(query.merged)))
    order = _closed_last(zero | _in_all(queries, key.index, zero.shape[0]))
    if order is None:
        return []
    left, right = chain_behind(query.merged), chain_behind(key.merged)
    if left is None or right is None or left.shifted:
        return []
    closed, places = order
    _permute(right, key.merged, places, None)
    _permute(left, query.merged, places[key.index], closed[key.index])
    return [_reordered(query.merged, places[key.index]), _reordered(key.merged, places)]


def _fit(one: Heads, other: Heads) -> bool:
    same = one.merged.value is not other.merged.value or one.merged.offset != other.merged.offset
    return (
        same and one.axis == other.axis and one.index.size == other.index.size and one.merged.size == other.merged.size
    )


def _last(merged: Merged) -> Axis:
    return Axis(merged.value, (rank(merged.value) or 0) - 1)


def _block(merged: Merged, mask: Mask) -> Mask:
    """The part of a vector over the axis that belongs to the heads, shape [heads, features]."""
    return mask[merged.offset : merged.offset + merged.heads * merged.size].reshape(merged.heads, merged.size)


def _in_all(mask: Mask, owner: NDArray[np.int64], heads: int) -> Mask:
    """What is set in all heads of the product that share one key head, shape [heads, features]."""
    result = np.ones((heads, mask.shape[1]), bool)
    for head, shared in enumerate(owner):
        result[shared] &= mask[head]
    return result


def _closed_last(closed: Mask) -> tuple[Mask, NDArray[np.int64]] | None:
    """Closed features and the new order in each head, None where it would not make the axis shorter."""
    alive = ~closed[~closed.all(axis=1)]
    if not alive.size or alive.sum(axis=1).max() >= alive.any(axis=0).sum():
        return None
    return closed, np.argsort(closed, axis=1, kind="stable")


def _permute(chain: Chain, merged: Merged, places: NDArray[np.int64], silenced: Mask | None) -> None:
    """Reorder the features of each head in all operands; `silenced` (in the old order) are set to zero.

    Of a chain that makes the features, everything is silenced; of one that reads them, this costs nothing either.
    """
    count = merged.heads * merged.size
    order = (np.arange(merged.heads)[:, None] * merged.size + places).ravel()
    for value, dim, start in chain.operands:
        array = array_of(value)
        assert array is not None
        array = np.moveaxis(array.copy(), dim, 0)
        if silenced is not None:
            array[start + np.flatnonzero(silenced)] = 0
        array[start : start + count] = array[start + order]
        value.const_value = ir.Tensor(
            np.ascontiguousarray(np.moveaxis(array, 0, dim)), name=value.name, dtype=value.dtype
        )


def _reordered(merged: Merged, places: NDArray[np.int64]) -> Reordered:
    order = merged.offset + (np.arange(merged.heads)[:, None] * merged.size + places).ravel()
    return Reordered(str(merged.value.name), tuple(int(place) for place in order))
