"""Rules for quantised graphs: an exact zero becomes the zero point, and a zero point weighs nothing.

Only zeros are followed through a quantisation. It rounds, so another constant that the model computes a little
differently could land on the next integer; zero lies half a step away from both of its neighbours, and removing it
changes no integer of what stays. Weights that are dequantised are seen as numbers (`quantised_weights`), so what
follows is about activations and about operators on integers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.axes import (
    Axis,
    Constants,
    Facts,
    Liveness,
    Mask,
    Permission,
    array_of,
    axes_of,
    rank,
    static_size,
)
from converters.compaction.registry import Refusal, rule
from converters.compaction.relations import Relation, Tie
from converters.compaction.rules.common import axis_of, constants_of, int_attribute, need_of, operand

Zeros = Callable[[Facts], Mask]


@rule("QuantizeLinear", "DequantizeLinear")
def relate_quantisation(node: ir.Node) -> list[Relation] | Refusal:
    """x: any shape; scale and zero point: one number, or one per index of `axis`."""
    x, scale, zero, output = node.inputs[0], operand(node, 1), operand(node, 2), node.outputs[0]
    size = None if x is None else rank(x)
    if x is None or scale is None or size is None or rank(output) != size or rank(scale) not in (0, 1):
        return Refusal(f"the shapes around this {node.op_type} are not known, or its scales come in blocks")
    if int_attribute(node, "block_size", 0):
        return Refusal(f"the scales of this {node.op_type} come in blocks")
    along = int_attribute(node, "axis", 1) % size if size else 0
    relations: list[Relation] = []
    for out_axis in axes_of(output):
        source = axis_of(x, out_axis.dim)
        if source is None or source.size != out_axis.size:
            return Refusal(f"the shapes around this {node.op_type} do not agree")
        vectors = [axis_of(value, 0) for value in (scale, zero)] if out_axis.dim == along else []
        members = [source, *(axis for axis in vectors if axis is not None)]
        if any(axis.size != out_axis.size for axis in members):
            return Refusal(f"the scales of this {node.op_type} do not fit its input")
        transfer = _zero_points(node.op_type, source, zero, out_axis.dim == along)
        relations.append(Tie(node, members, [out_axis], transfer))
    return relations


def _zero_points(
    op_type: str, source: Axis, zero: ir.Value | None, own_zero_points: bool
) -> Callable[[Facts], Constants | None]:
    def transfer(facts: Facts) -> Constants | None:
        known = facts.constants(source)
        if known is None:
            return None
        if zero is None:
            points = np.zeros(source.size)
        elif own_zero_points:
            points = constants_of(facts, zero, 0, source.size)
        else:
            points = np.full(source.size, facts.scalar(zero))
        if op_type == "QuantizeLinear":
            return np.where(known == 0, points, np.nan)
        return np.where(known == points, 0.0, np.nan)

    return transfer


class WholeRange(Tie):
    """A tie in which every number counts for the scale, except that zero is always part of the range."""

    @property
    def reason(self) -> str:
        return "its values decide the scale of all others, unless they are zero"

    def require(self, live: Liveness, facts: Facts) -> None:
        self._zero = facts.is_zero(self.inputs[0])
        live.need(self.inputs[0], True)

    def shrink(self, permission: Permission) -> None:
        permission.withhold(self.inputs[0], ~self._zero)
        super().shrink(permission)


@rule("DynamicQuantizeLinear")
def relate_dynamic_quantisation(node: ir.Node) -> list[Relation] | Refusal:
    """y, scale and zero point of min(x, 0) and max(x, 0) over the whole tensor."""
    x, output = node.inputs[0], node.outputs[0]
    if x is None or rank(x) is None or rank(x) != rank(output):
        return Refusal("the shapes around this DynamicQuantizeLinear are not known")
    pairs = [(axis, axis_of(output, axis.dim)) for axis in axes_of(x)]
    return [WholeRange(node, [source], [target]) for source, target in pairs if target is not None]


class IntegerSum(Relation):
    """A sum over `data`, index by index with `weight`, of products of differences from zero points.

    Args:
        zeros: which slices of the data are known to equal its zero point.
        reads: for which indices the weights differ from theirs, given the need of the outputs.
    """

    def __init__(
        self, node: ir.Node, data: Axis, weight: Axis, zeros: Zeros, reads: Callable[[Liveness], Mask]
    ) -> None:
        super().__init__(node, [data, weight])
        self.data, self.weight = data, weight
        self._zeros, self._reads = zeros, reads
        self.permitted: Mask = np.zeros(data.size, bool)

    @property
    def reason(self) -> str:
        return "a sum of integers reads it: it is not the zero point, and neither are its weights"

    def require(self, live: Liveness, facts: Facts) -> None:
        read, zero = self._reads(live), self._zeros(facts)
        live.need(self.data, read)
        live.need(self.weight, read)
        self.permitted = ~read | zero

    def shrink(self, permission: Permission) -> None:
        permission.withhold(self.data, ~self.permitted)
        permission.withhold(self.weight, ~permission.removable(self.data), permission.cause(self.data))
        permission.withhold(self.data, ~permission.removable(self.weight), permission.cause(self.weight))


@rule("MatMulInteger")
def relate_integer_product(node: ir.Node) -> list[Relation] | Refusal:
    """a: [*batch, M, K] with one zero point, b: [K, N] constant, its zero point one number or one per column."""
    return _relate_product(node, 0, 1, operand(node, 2), operand(node, 3), [])


@rule("QLinearMatMul")
def relate_quantised_product(node: ir.Node) -> list[Relation] | Refusal:
    """As MatMulInteger; scales and zero points: (a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero)."""
    if any(axes_of(node.inputs[slot]) for slot in (6, 7)):
        return Refusal("a QLinearMatMul with a scale per row or column of its result")
    return _relate_product(node, 0, 3, operand(node, 2), operand(node, 5), [operand(node, 4)])


def _relate_product(
    node: ir.Node,
    a_slot: int,
    b_slot: int,
    a_zero: ir.Value | None,
    b_zero: ir.Value | None,
    per_column: list[ir.Value | None],
) -> list[Relation] | Refusal:
    a, b, output = node.inputs[a_slot], node.inputs[b_slot], node.outputs[0]
    array, points = array_of(b), _zero_point_array(b_zero)
    size = None if a is None else rank(a)
    if a is None or b is None or size is None or size < 2 or rank(b) != 2 or rank(output) != size:
        return Refusal(f"the shapes around this {node.op_type} are not known")
    if array is None or points is None or points.ndim > 1:
        return Refusal(f"the weight of this {node.op_type}, or its zero point, is computed at run time")
    data, weight = axis_of(a, size - 1), axis_of(b, 0)
    if data is None or weight is None or data.size != weight.size or axes_of(a_zero):
        return Refusal(f"the inner dimension of this {node.op_type} is not known, or has a zero point per row")
    differs = array.astype(np.int32) != points.astype(np.int32)  # [K, N]
    out_axis = axis_of(output, size - 1)

    def reads(live: Liveness) -> Mask:
        needed = need_of(live, out_axis, differs.shape[1])
        read: Mask = differs[:, needed].any(axis=1)
        return read

    relations: list[Relation] = []
    for dim in range(size - 1):
        before, after = axis_of(a, dim), axis_of(output, dim)
        if before is not None and after is not None:
            relations.append(Tie(node, [before], [after]))
    if out_axis is not None:
        vectors = [axis_of(value, 0) for value in (b_zero, *per_column)]
        members = [axis for axis in (axis_of(b, 1), *vectors) if axis is not None]
        if any(axis.size != out_axis.size for axis in members):
            return Refusal(f"the scales of this {node.op_type} do not fit its weight")
        relations.append(Tie(node, members, [out_axis], _silent_rows(node, ~differs.any(axis=0), None)))
    return [*relations, IntegerSum(node, data, weight, _equal_to_zero_point(data, a_zero), reads)]


@rule("ConvInteger")
def relate_integer_convolution(node: ir.Node) -> list[Relation] | Refusal:
    """x: [N, C, *space] with one zero point, which is also what pads it; w: [O, C, *kernel] constant."""
    return _relate_convolution(node, 0, 1, operand(node, 2), operand(node, 3), [], None)


@rule("QLinearConv")
def relate_quantised_convolution(node: ir.Node) -> list[Relation] | Refusal:
    """(x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias); w_scale and w_zero may have one per filter."""
    return _relate_convolution(
        node, 0, 3, operand(node, 2), operand(node, 5), [operand(node, 4), operand(node, 8)], operand(node, 8)
    )


def _relate_convolution(
    node: ir.Node,
    x_slot: int,
    w_slot: int,
    x_zero: ir.Value | None,
    w_zero: ir.Value | None,
    per_filter: list[ir.Value | None],
    bias: ir.Value | None,
) -> list[Relation] | Refusal:
    x, w, output = node.inputs[x_slot], node.inputs[w_slot], node.outputs[0]
    array, points = array_of(w), _zero_point_array(w_zero)
    if x is None or w is None or array is None or points is None or points.ndim > 1:
        return Refusal(f"the weight of this {node.op_type}, or its zero point, is computed at run time")
    if int_attribute(node, "group", 1) != 1:
        return Refusal(f"a grouped {node.op_type} keeps its groups whole")
    if static_size(x, 1) != array.shape[1] or static_size(output, 1) != array.shape[0] or axes_of(x_zero):
        return Refusal(f"the channel count of this {node.op_type} is not known")
    shaped = points.reshape([-1, *[1] * (array.ndim - 1)]) if points.size > 1 else points.reshape(())
    differs = (array.astype(np.int32) != shaped.astype(np.int32)).any(axis=tuple(range(2, array.ndim)))  # [O, C]
    data, weight, out_axis = axis_of(x, 1), axis_of(w, 1), axis_of(output, 1)

    def reads(live: Liveness) -> Mask:
        needed = need_of(live, out_axis, differs.shape[0])
        read: Mask = differs[needed].any(axis=0)
        return read

    relations: list[Relation] = []
    if out_axis is not None:
        vectors = [axis_of(value, 0) for value in (w_zero, *per_filter)]
        members = [axis for axis in (axis_of(w, 0), *vectors) if axis is not None]
        if any(axis.size != out_axis.size for axis in members):
            return Refusal(f"the scales of this {node.op_type} do not fit its weight")
        relations.append(Tie(node, members, [out_axis], _silent_rows(node, ~differs.any(axis=1), bias)))
    if data is not None and weight is not None:
        relations.append(IntegerSum(node, data, weight, _equal_to_zero_point(data, x_zero), reads))
    return relations


def _silent_rows(node: ir.Node, silent: Mask, bias: ir.Value | None) -> Callable[[Facts], Constants | None]:
    """Outputs whose weights are all at their zero point, without a bias: zero, or the output's zero point."""

    def transfer(facts: Facts) -> Constants | None:
        rows = silent if bias is None else silent & (constants_of(facts, bias, 0, silent.size) == 0)
        point = 0.0
        if node.op_type.startswith("QLinear"):
            value = operand(node, 7)
            point = 0.0 if value is None else facts.scalar(value)
        return np.where(rows, point, np.nan)

    return transfer


def _equal_to_zero_point(data: Axis, zero: ir.Value | None) -> Zeros:
    def zeros(facts: Facts) -> Mask:
        maker = data.value.producer()
        if maker is not None and maker.op_type == "DynamicQuantizeLinear" and not maker.domain:
            # the zero point is found at run time, and a zero becomes exactly that
            source = maker.inputs[0]
            if source is not None and data.value is maker.outputs[0] and zero is maker.outputs[2]:
                return facts.is_zero(Axis(source, data.dim))
            return np.zeros(data.size, bool)
        known = facts.constants(data)
        point = 0.0 if zero is None else facts.scalar(zero)
        return np.zeros(data.size, bool) if known is None else known == point

    return zeros


def _zero_point_array(value: ir.Value | None) -> NDArray[np.generic] | None:
    return np.zeros((), np.int32) if value is None else array_of(value)
