"""What is known of a value: how many rows it has, and can it be exactly zero for one sample and not for another?"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

Dim = int | str

# results that are exactly zero, or exactly false, for some inputs and not for others
_STEPS = frozenset(
    {
        *("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Xor"),
        *("ArgMax", "ArgMin", "Ceil", "Floor", "HardSigmoid", "OneHot", "Relu", "Round", "Sign", "ThresholdedRelu"),
    }
)
# results that are zero where their first operand is
_PASSING = frozenset(
    {"Cast", "CastLike", "Expand", "Flatten", "Gather", "Identity", "Neg", "Reshape", "Slice", "Squeeze", "Unsqueeze"}
)


def dims_of(value: ir.Value | None) -> tuple[Dim | None, ...] | None:
    """Sizes and symbols of a value's axes, None for one that is unknown; None where even the rank is."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def constant_of(value: ir.Value | None) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None:
    """The array behind an initializer, None for anything else."""
    if value is None or value.const_value is None or value.is_graph_input() or value.producer() is not None:
        return None
    return value.const_value.numpy()


def is_per_sample(value: ir.Value, rows: Dim, rank: int) -> bool:
    """Whether the value holds one number for each of `rows` samples, [rows, 1, ..., 1] beside tensors of that rank.

    With a single row, any value of one element does.
    """
    dims = dims_of(value)
    if dims is None:
        return False
    if rows == 1:
        return all(dim == 1 for dim in dims)
    return len(dims) == rank and dims[0] == rows and all(dim == 1 for dim in dims[1:])


def can_be_zero(value: ir.Value | None, depth: int = 12) -> bool:
    """Whether the operators behind a value are of a kind that gives exact zeros.

    A heuristic that finds gates, on which no result depends: control flow asks for the value itself.
    """
    node = None if value is None else value.producer()
    if node is None or depth == 0 or node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type in _STEPS:
        return True
    if node.op_type in _PASSING:
        return can_be_zero(node.inputs[0], depth - 1)
    if node.op_type == "Mul":
        return any(can_be_zero(operand, depth - 1) for operand in node.inputs)
    if node.op_type == "Where":
        return any(_is_zero(branch) or can_be_zero(branch, depth - 1) for branch in node.inputs[1:])
    if node.op_type == "Sub":  # 1 - step
        return any(can_be_zero(operand, depth - 1) for operand in node.inputs)
    if node.op_type in ("Max", "Min"):
        return any(_is_zero(operand) for operand in node.inputs)
    if node.op_type == "Clip":
        bounds = [*node.inputs[1:3]]
        low, high = node.attributes.get("min"), node.attributes.get("max")  # below opset 11
        given = [attribute.as_float() for attribute in (low, high) if attribute is not None]
        return any(_is_zero(bound) for bound in bounds) or 0.0 in given
    return False


def is_binary(value: ir.Value | None, depth: int = 12) -> bool:
    """Whether a value is exactly 0 or 1, so that multiplying by it where it is not 0 changes nothing."""
    node = None if value is None else value.producer()
    if value is not None and value.dtype == ir.DataType.BOOL:
        return True
    if node is None or depth == 0 or node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type in _PASSING and node.op_type != "Neg":
        return is_binary(node.inputs[0], depth - 1)
    if node.op_type == "ArgMax":
        axis, dims = node.attributes.get("axis"), dims_of(node.inputs[0])
        return dims is not None and dims[0 if axis is None else axis.as_int()] == 2
    return False


def _is_zero(value: ir.Value | None) -> bool:
    array = constant_of(value)
    return array is not None and array.size > 0 and not np.any(array)
