"""Rules for norms over space: InstanceNormalization channel by channel, GroupNormalization by whole groups.

InstanceNormalization works inside each channel, so channels are tied, and a constant channel becomes its
bias. Exporters spell a group norm as Reshape to [N, groups, the rest], InstanceNormalization, Reshape back: there
the last axis holds features, and those that are exactly zero may go as from a layer norm. GroupNormalization
mixes the channels of a group: a group goes when none of its channels is needed, or when all that it puts out
is constant.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import (
    Axis,
    Constants,
    Facts,
    Liveness,
    Mask,
    Permission,
    array_of,
    rank,
    static_size,
)
from converters.compaction.registry import Refusal, fixup, rule
from converters.compaction.relations import Relation, Tie
from converters.compaction.rewrite import Edit
from converters.compaction.rules.common import axis_of, constants_of, int_attribute, same_rank
from converters.compaction.rules.layer_norm import Normalised, write_out


@rule("InstanceNormalization")
def relate_instance_norm(node: ir.Node) -> list[Relation] | Refusal:
    """x: [N, C, *space]; scale, bias: [C]; y = (x - mean) / sqrt(variance + eps) * scale + bias per channel."""
    x, output = node.inputs[0], node.outputs[0]
    if x is None or not same_rank(x, output):
        return Refusal("the shapes around this InstanceNormalization are not known")
    scale, bias = node.inputs[1:3]
    relations: list[Relation] = []
    before, after = axis_of(x, 0), axis_of(output, 0)
    if before is not None and after is not None:
        relations.append(Tie(node, [before], [after]))
    features, after = axis_of(x, 2), axis_of(output, 2)
    known = array_of(scale) is not None and array_of(bias) is not None
    if rank(x) == 3 and features is not None and after is not None and known:
        relations.append(NormalisedPlane(node, features, after, None, None, centered=True))
    channel, after = axis_of(x, 1), axis_of(output, 1)
    if channel is None or after is None:
        return relations

    def transfer(facts: Facts) -> Constants:
        s, b, c = (constants_of(facts, value, k, channel.size) for value, k in ((scale, 0), (bias, 0), (x, 1)))
        return np.where((s == 0) | np.isfinite(c), b, np.nan)

    def unread(facts: Facts, axis: Axis) -> Mask | None:
        # a zero scale hides the input
        return constants_of(facts, scale, 0, axis.size) == 0 if axis.value is x else None

    parameters = [Axis(value, 0) for value in (scale, bias) if value is not None]
    relations.append(Tie(node, [channel, *parameters], [after], transfer, unread))
    return relations


class NormalisedPlane(Normalised):
    """The only axis behind the channels: a layer norm over it, whose scale and bias belong to the channels."""

    def forward(self, facts: Facts) -> None:
        """Nothing: what comes out for a zero depends on the channel."""


@fixup("InstanceNormalization")
def fix_instance_norm(edit: Edit, node: ir.Node) -> None:
    """Correct the statistics for the zeros that went."""
    if not any(isinstance(relation, NormalisedPlane) for relation in edit.relations(node)):
        return
    data = Axis(node.outputs[0], 2)
    share = edit.kept(data).size / data.size
    if share == 1:
        return
    masks = [edit.removed(Axis(node.outputs[0], 1)), None]
    arrays = [array_of(value) for value in node.inputs[1:3]]
    name = node.outputs[0].name or "norm"
    scale, bias = (edit.add_initializer(name, a.reshape(-1, 1), masks) for a in arrays if a is not None)
    write_out(edit, node, scale, bias, masks, share, centered=True)


class WholeGroups(Relation):
    """The channels of a group stay together; per-group parameters follow their group.

    Args:
        data, output: axes of groups * size channels; channels: parameters with one entry per channel;
        per_group: parameters with one entry per group.
    """

    def __init__(
        self, node: ir.Node, data: Axis, output: Axis, channels: list[Axis], per_group: list[Axis], groups: int
    ) -> None:
        super().__init__(node, [data, *channels, *per_group, output])
        self.data, self.output, self.groups = data, output, groups
        self.channels, self.per_group = channels, per_group
        self._free: Mask = np.zeros(groups, bool)

    @property
    def reason(self) -> str:
        return "a group norm reads all channels of a group, and its group stays"

    def _parameter(self, facts: Facts, slot: int) -> Constants:
        assert self.node is not None
        value = self.node.inputs[slot]
        count = self.groups if value is not None and static_size(value, 0) == self.groups else self.data.size
        return np.repeat(constants_of(facts, value, 0, count), self.data.size // count)

    def forward(self, facts: Facts) -> None:
        scale, bias = self._parameter(facts, 1), self._parameter(facts, 2)
        constants = facts.constants(self.data)
        even = np.zeros(self.groups, bool)
        if constants is not None:
            grouped = constants.reshape(self.groups, -1)
            even = np.isfinite(grouped).all(axis=1) & (grouped == grouped[:, :1]).all(axis=1)
        even_channels = np.repeat(even, self.data.size // self.groups)
        facts.learn(self.output, np.where((scale == 0) | even_channels, bias, np.nan))

    def require(self, live: Liveness, facts: Facts) -> None:
        needed = live.needed(self.output)
        reads = (needed & (self._parameter(facts, 1) != 0)).reshape(self.groups, -1).any(axis=1)
        live.need(self.data, np.repeat(reads, self.data.size // self.groups))
        for axis in self.channels:
            live.need(axis, needed)
        for axis in self.per_group:
            live.need(axis, np.logical_or.reduce(needed.reshape(self.groups, -1), axis=1))

    def shrink(self, permission: Permission) -> None:
        size = self.data.size // self.groups
        stays = np.zeros(self.groups, bool)
        for axis in self.axes:
            stays |= (~permission.removable(axis)).reshape(self.groups, -1).any(axis=1)
        for axis in self.axes:
            permission.withhold(axis, stays if axis in self.per_group else np.repeat(stays, size))


@rule("GroupNormalization")
def relate_group_norm(node: ir.Node) -> list[Relation] | Refusal:
    """x: [N, C, *space]; scale, bias: [C] from opset 21, [groups] before; statistics over each group and space."""
    x, output = node.inputs[0], node.outputs[0]
    if x is None or not same_rank(x, output) or rank(x) is None:
        return Refusal("the shapes around this GroupNormalization are not known")
    relations: list[Relation] = []
    before, after = axis_of(x, 0), axis_of(output, 0)
    if before is not None and after is not None:
        relations.append(Tie(node, [before], [after]))
    data, after = axis_of(x, 1), axis_of(output, 1)
    groups = int_attribute(node, "num_groups", 0)
    if data is None or after is None or groups < 2 or data.size % groups:
        return relations
    channels: list[Axis] = []
    per_group: list[Axis] = []
    for value in node.inputs[1:3]:
        axis = axis_of(value, 0)
        if axis is None or axis.size not in (groups, data.size):
            return relations
        (channels if axis.size == data.size else per_group).append(axis)
    relations.append(WholeGroups(node, data, after, channels, per_group, groups))
    return relations


@fixup("GroupNormalization")
def fix_group_norm(edit: Edit, node: ir.Node) -> None:
    """Count the groups that stay."""
    for relation in edit.relations(node):
        if isinstance(relation, WholeGroups):
            size = relation.data.size // relation.groups
            node.attributes["num_groups"] = ir.AttrInt64("num_groups", edit.kept(relation.data).size // size)
