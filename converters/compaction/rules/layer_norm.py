"""Rules for norms over features: LayerNormalization and RMSNormalization may lose features that are exactly zero.

With m of n features left and s = m / n, the statistics over all n follow from those over the m:

    mean = s * mean_m          variance = s * mean_m((x - mean)^2) + (1 - s) * mean^2
    mean square = s * mean square_m

RMSNormalization absorbs s in its scale and its epsilon. LayerNormalization cannot, so it is written out; that
costs a few elementwise passes and pays as soon as a share of the matrix products around it goes.
The outputs at removed features are (0 - mean) / deviation * scale[i] + bias[i]: affine in one unknown, so
they are twins, and a reader may fold all of them into one that stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.axes import Axis, Constants, Facts, Liveness, Mask, Permission, Twins, array_of, as_float64
from converters.compaction.axes import rank as rank_of
from converters.compaction.registry import Refusal, fixup, rule
from converters.compaction.relations import Relation, Tie
from converters.compaction.rewrite import Edit
from converters.compaction.rules.common import axis_of, constants_of, float_attribute, int_attribute, operand

# Writing LayerNormalization out costs about as much as one part in 64 of the matrix products around it.
_SMALLEST_GAIN = 64
# Below this version of the standard operators there is no LayerNormalization, and ReduceMean has other inputs.
_FIRST_LAYER_NORM = 17
_FIRST_AXES_AS_INPUT = 18


class Normalised(Relation):
    """The normalised axis: every output reads every input, and only inputs that are exactly zero may go.

    Args:
        data, output: the axis before and after; scale, bias: the parameters' axes, where they have one.
        centered: whether the mean is subtracted (LayerNormalization) or not (RMSNormalization).
    """

    def __init__(
        self, node: ir.Node, data: Axis, output: Axis, scale: Axis | None, bias: Axis | None, *, centered: bool
    ) -> None:
        super().__init__(node, [axis for axis in (data, scale, bias, output) if axis is not None])
        self.data, self.output, self.scale, self.bias = data, output, scale, bias
        self.centered = centered
        # writing the norm out pays only from some number of removed features on
        self.evens_out = centered
        self._removable: Mask = np.zeros(data.size, bool)

    @property
    def reason(self) -> str:
        return "a norm reads every feature that is not exactly zero, or too few go to pay for writing it out"

    def _parameters(self, facts: Facts) -> tuple[Constants, Constants]:
        size = self.data.size
        return (
            np.ones(size) if self.scale is None else constants_of(facts, self.scale.value, 0, size),
            np.zeros(size) if self.bias is None else constants_of(facts, self.bias.value, 0, size),
        )

    def forward(self, facts: Facts) -> None:
        scale, bias = self._parameters(facts)
        zero = facts.is_zero(self.data)
        constants = np.where((scale == 0) | zero.all(), bias, np.nan)
        if self.centered:
            facts.learn_twins(self.output, Twins(np.where(zero, scale, np.nan), bias))
        else:
            constants = np.where(zero, bias, constants)
        facts.learn(self.output, constants)

    def require(self, live: Liveness, facts: Facts) -> None:
        needed = live.needed(self.output)
        scale, _ = self._parameters(facts)
        zero = facts.is_zero(self.data)
        reads = bool((needed & (scale != 0)).any())
        # a zero that is needed must really be one, so zeros are needed with everything else
        live.need(self.data, reads)
        for axis in (self.scale, self.bias):
            if axis is not None:
                live.need(axis, needed)
        self._removable = zero | (not reads)

    def shrink(self, permission: Permission) -> None:
        permission.withhold(self.data, ~self._removable)
        for source in self.axes:
            kept = ~permission.removable(source)
            if kept.any():
                for target in self.axes:
                    if target is not source:
                        permission.withhold(target, kept, permission.cause(source))

    def even_out(self, permission: Permission) -> None:
        goes = permission.removable(self.data)
        if 0 < goes.sum() * _SMALLEST_GAIN < goes.size:
            permission.withhold(self.data, np.ones(goes.size, bool))


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def relate_norm(node: ir.Node) -> list[Relation] | Refusal:
    """x: [*outer, n]; scale, bias: [n]; the axes before the normalised one are tied."""
    x, output, scale, bias = node.inputs[0], node.outputs[0], operand(node, 1), operand(node, 2)
    size = None if x is None else rank_of(x)
    if x is None or scale is None or size is None or rank_of(output) != size:
        return Refusal(f"the shapes around this {node.op_type} are not known")
    if any(extra.uses() or extra.is_graph_output() for extra in node.outputs[1:]):
        return Refusal(f"the statistics of this {node.op_type} are used")
    first = int_attribute(node, "axis", -1) % size
    relations: list[Relation] = []
    for dim in range(first):
        before, after = axis_of(x, dim), axis_of(output, dim)
        if before is not None and after is not None:
            relations.append(Tie(node, [before], [after]))
    data, normal = axis_of(x, size - 1), axis_of(output, size - 1)
    if first != size - 1 or data is None or normal is None:
        return relations  # a norm over several axes keeps them whole
    parameters = [None if value is None else axis_of(value, 0) for value in (scale, bias)]
    for value, axis in zip((scale, bias), parameters, strict=True):
        if value is not None and (rank_of(value) != 1 or axis is None or axis.size != data.size):
            return relations
    relations.append(Normalised(node, data, normal, *parameters, centered=node.op_type == "LayerNormalization"))
    return relations


@rule("LpNormalization")
def relate_lp_norm(node: ir.Node) -> list[Relation] | Refusal:
    """y = x / |x|_p along one axis: zeros change neither, so they may go; the other axes are tied."""
    x, output = node.inputs[0], node.outputs[0]
    size = None if x is None else rank_of(x)
    if x is None or size is None or rank_of(output) != size:
        return Refusal("the shapes around this LpNormalization are not known")
    normal = int_attribute(node, "axis", -1) % size
    relations: list[Relation] = []
    for dim in range(size):
        before, after = axis_of(x, dim), axis_of(output, dim)
        if before is None or after is None:
            continue
        if dim == normal:
            relations.append(Normalised(node, before, after, None, None, centered=False))
        else:
            relations.append(Tie(node, [before], [after]))
    return relations


@fixup("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def fix_norm(edit: Edit, node: ir.Node) -> None:
    """Correct the statistics for the zeros that went."""
    centered = node.op_type == "LayerNormalization"
    data = Axis(node.outputs[0], (rank_of(node.outputs[0]) or 0) - 1)
    stated = any(isinstance(relation, Normalised) for relation in edit.relations(node))
    share = edit.kept(data).size / data.size if stated else 1.0
    # below that version it was spelled out when the model came in
    spell_out = centered and edit.opset() < _FIRST_LAYER_NORM
    if spell_out or (share != 1 and (centered or not _absorb(edit, node, data, share))):
        scale, bias = operand(node, 1), operand(node, 2)
        assert scale is not None
        write_out(edit, node, scale, bias, [edit.removed(data)], share, centered=centered)


def _absorb(edit: Edit, node: ir.Node, data: Axis, share: float) -> bool:
    """Put the share into scale and epsilon: x / sqrt(s * q + eps) = x / sqrt(s) / sqrt(q + eps / s)."""
    scale = array_of(node.inputs[1])
    epsilon = float_attribute(node, "epsilon", 1e-5) / share
    exact = node.outputs[0].dtype != ir.DataType.DOUBLE or float(np.float32(epsilon)) == epsilon
    if scale is None or not exact:
        return False  # attributes are float32
    factor = 1 / math.sqrt(share)
    edit.set_input(node, 1, (as_float64(scale) * factor).astype(scale.dtype), [edit.removed(data)])
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", epsilon)
    return True


def write_out(
    edit: Edit,
    node: ir.Node,
    scale: ir.Value,
    bias: ir.Value | None,
    masks: Sequence[Mask | None],
    share: float,
    *,
    centered: bool,
) -> None:
    """Spell a norm over the last axis out; s goes into a constant scale where it can, with t = 1, else t = s.

    d = x - s * mean_m (RMSNormalization: x)
    output = d / sqrt(t * (mean_m(d^2) + s * (1 - s) * mean_m^2 + epsilon / s)) * (scale * sqrt(t / s)) + bias

    Args:
        scale, bias: broadcast to x; masks: what goes from a scale at full size, per dimension, as in
            `Edit.add_initializer`.
        share: s.
    """
    x, output = node.inputs[0], node.outputs[0]
    data = Axis(output, (rank_of(output) or 0) - 1)
    assert x is not None
    assert x.shape is not None
    assert output.dtype is not None
    outer = list(x.shape)[:-1]
    whole, per_row = ir.Shape([*outer, edit.kept(data).size]), ir.Shape([*outer, 1])
    # statistics of narrow types are taken in float32, as the operator's stash_type says
    narrow = output.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) and int_attribute(node, "stash_type", 1) == 1
    inner = ir.DataType.FLOAT if narrow else output.dtype
    name = output.name or "norm"

    def number(value: float) -> ir.Value:
        return edit.add_initializer(name, np.array(value).astype(inner.numpy()))

    def step(op_type: str, *inputs: ir.Value, shape: ir.Shape = per_row, **attributes: ir.Attr) -> ir.Value:
        result = edit.insert_before(node, op_type, inputs, shape, **attributes)
        result.type = ir.TensorType(inner)
        return result

    def cast(value: ir.Value, dtype: ir.DataType) -> ir.Value:
        result = edit.insert_before(node, "Cast", [value], whole, to=ir.AttrInt64("to", int(dtype)))
        result.type = ir.TensorType(dtype)
        return result

    def mean_of(value: ir.Value) -> ir.Value:
        if edit.opset() >= _FIRST_AXES_AS_INPUT:
            return step("ReduceMean", value, edit.add_initializer(name, np.array([-1], np.int64)))
        return step("ReduceMean", value, axes=ir.AttrInt64s("axes", [-1]))

    if narrow:
        x = cast(x, inner)
    epsilon = number(float_attribute(node, "epsilon", 1e-5) / share)
    if centered:
        mean = mean_left = mean_of(x)
        if share != 1:
            mean = step("Mul", mean_left, number(share))
        d = step("Sub", x, mean, shape=whole)
        variance = mean_of(step("Mul", d, d, shape=whole))
        if share != 1:
            variance = step("Add", variance, step("Mul", step("Mul", mean, mean_left), number(1 - share)))
    else:
        d = x
        variance = mean_of(step("Mul", d, d, shape=whole))
    variance = step("Add", variance, epsilon)
    array = array_of(scale)
    if share != 1 and array is not None and not narrow:
        scaled: NDArray[np.generic] = (as_float64(array) / math.sqrt(share)).astype(array.dtype)
        scale = edit.add_initializer(name, scaled, masks)
    elif share != 1:
        variance = step("Mul", variance, number(share))
    result = step("Mul", d, step("Reciprocal", step("Sqrt", variance)), shape=whole)
    if narrow:
        result = cast(result, output.dtype)
    result = edit.insert_before(node, "Mul", [result, scale], whole)
    if bias is not None:
        result = edit.insert_before(node, "Add", [result, bias], whole)
    edit.replace_output(node, result)
