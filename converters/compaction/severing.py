"""Which operands and outputs hold the same numbers for every input, so that the branch behind them goes?

Decided from the facts before any need is propagated: an operand that becomes an initializer asks nothing of
the branch that computed it, so the whole branch is dead unless somebody else reads it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.axes import Facts, axes_of, is_constant
from converters.compaction.maps import Maps

# operator: the operands that may become broadcastable initializers as long as the others keep the shape
_OPERANDS: dict[str, tuple[int, ...] | None] = {
    "Add": None,
    "Div": None,
    "Max": None,
    "Min": None,
    "Mul": None,
    "PRelu": (1,),  # the slope must broadcast to x, so x itself must keep its shape
    "Sub": None,
    "Sum": None,
    "Where": None,
}


@dataclass(frozen=True)
class Severed:
    """Operand `slot` of `node` becomes an initializer.

    Attributes:
        array: its numbers at full width, broadcastable to the output; shape [], or 1 where it repeats, or
            [1, C, *space] for a map.
        neutral: whether the operand adds zero, so that the node is its other operand.
    """

    node: ir.Node
    slot: int
    array: NDArray[np.float64]
    neutral: bool


@dataclass(frozen=True)
class ConstantOutput:
    """An output of the model that does not depend on the model's inputs.

    Attributes:
        array: its numbers, broadcastable to the output.
        dims: per dimension its size, or the (input, dimension) that has the same size at run time.
    """

    value: ir.Value
    array: NDArray[np.float64]
    dims: tuple[int | tuple[ir.Value, int], ...]


def find_severed(nodes: Sequence[ir.Node], facts: Facts, maps: Maps) -> list[Severed]:
    """All operands that can be replaced, in graph order."""
    found: list[Severed] = []
    for node in nodes:
        if node.op_type not in _OPERANDS or node.domain not in ("", "ai.onnx") or len(node.inputs) < 2:
            continue
        gone: set[int] = set()
        allowed = _OPERANDS[node.op_type]
        for slot, value in enumerate(node.inputs):
            if value is None or is_constant(value) or value.is_graph_input() or value in node.inputs[:slot]:
                continue
            if allowed is not None and slot not in allowed:
                continue
            others = [v for index, v in enumerate(node.inputs) if index != slot and index not in gone]
            if value in others or not _cover([v for v in others if v is not None], node.outputs[0]):
                continue
            array = constant_array(facts, value)
            if array is None and maps.varying(value) is not None and maps.fixed(value).all():
                array = maps.tensor(value)
            if array is None or not np.isfinite(array).all():
                continue
            gone.add(slot)
            adds = node.op_type in ("Add", "Sum") or (node.op_type == "Sub" and slot == 1)
            neutral = adds and len(node.inputs) == 2 and not array.any() and _same_form(others[0], node.outputs[0])
            found.append(Severed(node, slot, array, neutral))
    return found


def constant_array(facts: Facts, value: ir.Value) -> NDArray[np.float64] | None:
    """The value as a broadcastable array at full width, None if it is not the same for every input.

    Returns: shape [] or [1, ..., width, ..., 1].
    """
    scalar = facts.scalar(value)
    if math.isfinite(scalar):
        return np.asarray(scalar)
    if value.shape is None:
        return None
    for axis in axes_of(value):
        known = facts.constants(axis)
        if known is not None and np.isfinite(known).all():
            return known.reshape([-1 if dim == axis.dim else 1 for dim in range(len(value.shape))])
    return None


def find_constant_outputs(graph: ir.Graph, facts: Facts) -> list[ConstantOutput]:
    """Outputs that can be written without the graph behind them, because their shape is known without it."""
    found: list[ConstantOutput] = []
    for value in dict.fromkeys(graph.outputs):
        if value.producer() is None or value.shape is None or value.dtype is None:
            continue
        array = constant_array(facts, value)
        dims = [_dim_source(graph, dim) for dim in value.shape]
        if array is not None and None not in dims:
            found.append(ConstantOutput(value, array, tuple(dim for dim in dims if dim is not None)))
    return found


def _dim_source(graph: ir.Graph, dim: int | ir.SymbolicDim) -> int | tuple[ir.Value, int] | None:
    if isinstance(dim, int):
        return dim
    for value in graph.inputs:
        for position, other in enumerate(value.shape or ()):
            if dim.value is not None and isinstance(other, ir.SymbolicDim) and other.value == dim.value:
                return value, position
    return None


def _cover(others: list[ir.Value], output: ir.Value) -> bool:
    """Whether the other operands alone broadcast to the output's shape."""
    if output.shape is None:
        return False
    sizes = [list(other.shape) for other in others if other.shape is not None]
    if len(sizes) != len(others) or not any(len(size) == len(output.shape) for size in sizes):
        return False
    return all(
        wanted == 1 or any(len(size) >= end and _equal_dims(size[-end], wanted) for size in sizes)
        for end, wanted in enumerate(reversed(list(output.shape)), start=1)
    )


def _equal_dims(left: int | ir.SymbolicDim, right: int | ir.SymbolicDim) -> bool:
    if isinstance(left, int) or isinstance(right, int):
        return left == right
    return left.value is not None and left.value == right.value


def _same_form(left: ir.Value | None, right: ir.Value) -> bool:
    if left is None or left.shape is None or right.shape is None or left.dtype != right.dtype:
        return False
    return len(left.shape) == len(right.shape) and all(map(_equal_dims, left.shape, right.shape))
