"""Which sums of squares are sums of (x - y)^2 with one y for all of an axis, so that constants of x may go?

A variance reads x like this, with its mean for y, but any y that does not have the axis will do:

    d = x - y;    q = d * d  or  d ^ 2;    mean of q, or sum of q, along the axis

No entry of q is known, yet what the removed constants c add follows from y alone: with r of them out of n

    sum over them of (c - y)^2 = r * ((y - mean(c))^2 + variance(c))
    mean = (1 - r / n) * mean over the others + (r / n) * ((y - mean(c))^2 + variance(c))

which adds squares only, so that nothing cancels. Zeros of x are the usual case: y^2, that is.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import Axis, Facts, Liveness, array_of, is_constant, rank
from converters.compaction.relations import Contract
from converters.compaction.rewrite import Edit
from converters.compaction.rules.common import axis_of, int_attribute
from converters.compaction.rules.twins import is_broadcast


class Deviations(Contract):
    """A sum of squares over `data`, of which index i may go where x[i] is constant.

    Args:
        data: the axis of the squares; x: the same axis of what y is subtracted from.
        difference: the node x - y or y - x; slot: where y stands in it.
    """

    def __init__(self, node: ir.Node, data: Axis, x: Axis, difference: ir.Node, slot: int) -> None:
        super().__init__(node, data, None, fold="zero", reads=lambda live, facts: np.ones(data.size, bool))
        self.x, self.difference, self.slot = x, difference, slot

    def require(self, live: Liveness, facts: Facts) -> None:
        super().require(live, facts)
        y = self.difference.inputs[self.slot]
        assert y is not None
        # where y is known too, there may be no difference any more to take it from
        self.permitted = facts.is_known(self.x) & math.isnan(facts.scalar(y))


def deviations_of(node: ir.Node, data: Axis) -> Deviations | None:
    """The relation of ReduceMean or ReduceSum over this axis alone, if what it reads are squares of x - y."""
    size = rank(data.value)
    square = data.value.producer()
    if node.op_type not in ("ReduceMean", "ReduceSum") or square is None or not _squares(square):
        return None
    difference = None if square.inputs[0] is None else square.inputs[0].producer()
    if difference is None or difference.op_type != "Sub" or difference.domain not in ("", "ai.onnx"):
        return None
    for slot in (0, 1):
        x, y = difference.inputs[1 - slot], difference.inputs[slot]
        if x is None or y is None or size is None or rank(x) is None or rank(y) != size:
            continue
        axis = axis_of(x, data.dim - size) if (rank(x) or 0) >= size - data.dim else None
        if axis is not None and axis.size == data.size and is_broadcast(y, data.dim) and not is_constant(y):
            return Deviations(node, data, axis, difference, slot)
    return None


def _squares(node: ir.Node) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Mul":
        return node.inputs[0] is node.inputs[1]
    power = array_of(node.inputs[1]) if node.op_type == "Pow" else None
    return power is not None and power.size == 1 and float(power.reshape(())) == 2


def add_deviations(edit: Edit, node: ir.Node, relation: Deviations) -> None:
    """Correct the mean or the sum for the constants that went."""
    goes = edit.removed(relation.data)
    y = relation.difference.inputs[relation.slot]
    constants = edit.facts.constants(relation.x)
    if not goes.any() or y is None or y.shape is None or constants is None:
        return
    output = node.outputs[0]
    assert output.dtype is not None
    dtype = output.dtype.numpy()
    name = output.name or "deviations"
    shape = _final_shape(edit, y)

    def number(value: float) -> ir.Value:
        return edit.add_initializer(name, np.array(value).astype(dtype))

    gone = constants[goes]
    center, spread = (gone[0], 0.0) if (gone == gone[0]).all() else (gone.mean(), gone.var())
    squared = y if center == 0 else edit.insert_before(node, "Sub", [y, number(center)], shape)
    squared = edit.insert_before(node, "Mul", [squared, squared], shape)
    if spread != 0:
        squared = edit.insert_before(node, "Add", [squared, number(spread)], shape)
    share = float(goes.mean())
    weight = share if node.op_type == "ReduceMean" else float(goes.sum())
    squared = edit.insert_before(node, "Mul", [squared, number(weight)], shape)
    if not int_attribute(node, "keepdims", 1):
        # the axis has length 1, and the same reduction takes it away
        shape = _final_shape(edit, output)
        squared = edit.insert_before(node, node.op_type, [squared, *node.inputs[1:]], shape, **node.attributes)
    last = edit.insert_after(node, "Mul", [number(1 - share)]) if node.op_type == "ReduceMean" else node
    edit.insert_after(last, "Add", [squared])


def _final_shape(edit: Edit, value: ir.Value) -> ir.Shape:
    assert value.shape is not None
    sizes = [edit.new_size(value, dim) for dim in range(len(value.shape))]
    return ir.Shape([old if new is None else new for old, new in zip(value.shape, sizes, strict=True)])
