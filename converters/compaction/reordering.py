"""Can the rows of the layer that makes a value be put in another order, so that the value's last dimension is too?"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.axes import array_of, rank, static_size
from converters.compaction.names import register_initializer

# node, operand, dimension of the operand
_Change = tuple[ir.Node, int, int]


def reorder_rows(graph: ir.Graph, value: ir.Value, dim: int, order: NDArray[np.int64]) -> bool:
    """Make index j of the dimension what index order[j] was, through added constants up to a MatMul or a Gemm.

    Returns:
        Whether it could be done; nothing changes where it could not.
    """
    if np.array_equal(order, np.arange(order.size)):
        return True
    changes = _changes(value, order.size) if dim == (rank(value) or 0) - 1 else None
    if changes is None:
        return False
    for node, slot, where in changes:
        array = array_of(node.inputs[slot])
        assert array is not None
        if array.ndim and array.shape[where] == order.size:
            _replace(graph, node, slot, np.take(array, order, axis=where))
    return True


def _changes(value: ir.Value, width: int) -> list[_Change] | None:
    """Constant operands that carry the last dimension of the value; None if something else makes or reads it."""
    changes: list[_Change] = []
    while True:
        node, size = value.producer(), rank(value)
        if node is None or not size or node.domain not in ("", "ai.onnx") or static_size(value, size - 1) != width:
            return None
        if value.is_graph_output() or len(value.uses()) != 1:
            return None
        if node.op_type == "Add":
            slot = next((slot for slot in (0, 1) if _broadcasts(node.inputs[slot], width)), None)
            source = None if slot is None else node.inputs[1 - slot]
            if slot is None or source is None:
                return None
            changes.append((node, slot, -1))
            value = source
            continue
        weight = array_of(node.inputs[1]) if node.op_type in ("MatMul", "Gemm") else None
        if weight is None or weight.ndim < 2:
            return None
        transposed = node.attributes.get("transB")
        changes.append((node, 1, 0 if transposed is not None and transposed.as_int() else -1))
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            if not _broadcasts(node.inputs[2], width):
                return None
            changes.append((node, 2, -1))
        return changes


def _broadcasts(value: ir.Value | None, width: int) -> bool:
    """Whether the value is a constant with one number per index of the last dimension, or one for all."""
    array = array_of(value)
    return array is not None and (array.ndim == 0 or array.shape[-1] in (1, width))


def _replace(graph: ir.Graph, node: ir.Node, slot: int, array: NDArray[np.generic]) -> None:
    old = node.inputs[slot]
    assert old is not None
    name = f"{old.name}_reordered"
    while name in graph.initializers:
        name += "_again"
    tensor = ir.Tensor(array, name=name, dtype=old.dtype)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=old.type, const_value=tensor)
    register_initializer(graph, value)
    node.replace_input_with(slot, value)
