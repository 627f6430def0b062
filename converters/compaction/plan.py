"""The decision as plain data: what is removed, what stays although it is dead, and why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from converters.compaction.analysis import Analysis
from converters.compaction.axes import PADDING, Axis, Permission, is_constant
from converters.compaction.feature_order import Reordered
from converters.compaction.relations import Contract, Grouped, Pin, Relation
from converters.compaction.selection import Selection


@dataclass(frozen=True)
class Removal:
    """One axis that loses indices.

    Attributes:
        kept: the indices that stay, in order, counted in the width before.
    """

    value: str
    axis: int
    width_before: int
    width_after: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Kept:
    """Dead indices of an axis that stay, and the reader that needs them to.

    Attributes:
        count: how many dead indices stay for this reason.
        node: the operator that keeps them, "" for the model's interface.
        cost: parameters that are stored because of them.
    """

    value: str
    axis: int
    count: int
    node: str
    reason: str
    cost: int

    def __str__(self) -> str:
        where = f" ({self.node})" if self.node else ""
        return (
            f"{self.value}[{self.axis}]: {self.count} dead indices stay{where}: {self.reason}; {self.cost} parameters"
        )


@dataclass(frozen=True)
class Selected:
    """A Gather in front of a node that uses few indices of an axis that stays wider.

    Attributes:
        indices: the indices that the node takes, counted in the width before; a depthwise convolution may take
            one for several outputs.
    """

    value: str
    axis: int
    node: str
    width: int
    indices: tuple[int, ...]

    def __str__(self) -> str:
        different = len(set(self.indices))
        several = "" if different == len(self.indices) else f", {len(self.indices)} times in all,"
        return f"{self.value}[{self.axis}]: {self.node} takes {different} of {self.width} indices{several} by a Gather"


@dataclass(frozen=True)
class Replaced:
    """An operand or an output that holds the same numbers for every input and is written as a constant.

    Attributes:
        node: the operator whose operand it is, "" for an output of the model.
    """

    value: str
    node: str

    def __str__(self) -> str:
        where = f" in front of {self.node}" if self.node else ""
        return f"{self.value}: the same for every input, replaced by a constant{where}"


@dataclass(frozen=True)
class RemovalPlan:
    """What compaction does to a graph, decided before the first change.

    Attributes:
        removed: every axis that gets narrower, in graph order.
        kept: dead indices that stay, most expensive first.
        without_rule: operator types that no rule describes.
        selected: where a Gather takes what a reader needs.
        replaced: what becomes a constant, so that the branch behind it goes.
        reordered: features of attention heads that were put into another order first; indices count in that order.
    """

    removed: tuple[Removal, ...]
    kept: tuple[Kept, ...]
    without_rule: tuple[str, ...]
    selected: tuple[Selected, ...] = ()
    replaced: tuple[Replaced, ...] = ()
    reordered: tuple[Reordered, ...] = ()

    def explain(self, value: str, axis: int) -> str:
        """One line: why this axis was cut as it was, or was not cut."""
        for removal in self.removed:
            if (removal.value, removal.axis) == (value, axis):
                return f"{value}[{axis}]: cut from {removal.width_before} to {removal.width_after}"
        for kept in self.kept:
            if (kept.value, kept.axis) == (value, axis):
                return str(kept)
        return f"{value}[{axis}]: every index is live"

    def to_json(self) -> dict[str, object]:
        """Plain dictionaries and lists, ready for `json.dumps`."""
        return {
            "removed": [
                {
                    "value": r.value,
                    "axis": r.axis,
                    "width_before": r.width_before,
                    "width_after": r.width_after,
                    "kept": list(r.kept),
                }
                for r in self.removed
            ],
            "kept": [
                {"value": k.value, "axis": k.axis, "count": k.count, "node": k.node, "reason": k.reason, "cost": k.cost}
                for k in self.kept
            ],
            "without_rule": list(self.without_rule),
            "selected": [
                {"value": s.value, "axis": s.axis, "node": s.node, "width": s.width, "indices": list(s.indices)}
                for s in self.selected
            ],
            "replaced": [{"value": r.value, "node": r.node} for r in self.replaced],
            "reordered": [{"value": r.value, "order": list(r.order)} for r in self.reordered],
        }


def make_plan(
    analysis: Analysis,
    permission: Permission,
    representatives: Mapping[Contract, int],
    selections: Sequence[Selection] = (),
    reordered: Sequence[Reordered] = (),
) -> RemovalPlan:
    """Describe the solved permissions; must run before the graph is changed."""
    removed: list[Removal] = []
    kept: list[Kept] = []
    weights_of = _weights_by_axis(analysis)
    for axis in permission.axes:
        removable = permission.removable(axis)
        if removable.any():
            stays = np.flatnonzero(~removable)
            removed.append(Removal(str(axis.value.name), axis.dim, axis.size, stays.size, tuple(int(i) for i in stays)))
        value = axis.value
        if is_constant(value) or value.is_graph_input() or value.is_graph_output() or not _is_float(value):
            continue
        dead = (analysis.facts.is_known(axis) | ~analysis.live.needed(axis)) & ~removable
        if dead.any():
            kept += _reasons(analysis, permission, axis, dead, weights_of.get(axis, 0))
    kept.sort(key=lambda item: (-item.cost, item.value, item.axis, item.reason))
    return RemovalPlan(
        tuple(removed),
        tuple(kept),
        analysis.without_rule,
        (*_selected(permission, selections), *_spread(analysis, permission)),
        _replaced(analysis),
        tuple(reordered),
    )


def _selected(permission: Permission, selections: Sequence[Selection]) -> tuple[Selected, ...]:
    found = []
    for selection in selections:
        taken = ~permission.removable(selection.taken)
        width = int((~permission.removable(selection.source)).sum())
        if taken.sum() < width:
            indices = tuple(int(i) for i in np.flatnonzero(taken))
            source = selection.source
            found.append(Selected(str(source.value.name), source.dim, _name(selection.relation.node), width, indices))
    return tuple(found)


def _spread(analysis: Analysis, permission: Permission) -> Iterator[Selected]:
    for relation in analysis.relations:
        if isinstance(relation, Grouped) and relation.spread and not permission.removable(relation.output).all():
            staying, taken = np.flatnonzero(~permission.removable(relation.data)), relation.taken(permission)
            if not np.array_equal(taken, staying):
                source, indices = relation.data, tuple(int(i) for i in taken)
                yield Selected(str(source.value.name), source.dim, _name(relation.node), staying.size, indices)


def _replaced(analysis: Analysis) -> tuple[Replaced, ...]:
    operands = [Replaced(str(s.node.inputs[s.slot].name), _name(s.node)) for s in analysis.severed]  # type: ignore[union-attr]
    return (*operands, *(Replaced(str(output.value.name), "") for output in analysis.constant_outputs))


def _name(node: ir.Node | None) -> str:
    # files from elsewhere often leave nodes without a name; their output has one
    return "" if node is None else f"{node.op_type} {node.name or node.outputs[0].name}"


def _reasons(
    analysis: Analysis, permission: Permission, axis: Axis, dead: np.ndarray[tuple[int], np.dtype[np.bool_]], cost: int
) -> list[Kept]:
    causes = permission.cause(axis)[dead]
    found: list[Kept] = []
    for cause in np.unique(causes):
        count = int((causes == cause).sum())
        if cause == PADDING:
            node, reason = "", "it pads the width to one that the hardware likes"
        elif cause < 0:
            node, reason = "", "one index must stay, or it stands in for folded constants"
        else:
            relation: Relation = analysis.relations[cause]
            node = _name(relation.node)
            reason = relation.reason
        found.append(Kept(str(axis.value.name), axis.dim, count, node, reason, cost * count))
    return found


def _weights_by_axis(analysis: Analysis) -> dict[Axis, int]:
    """Parameters that one index of an activation axis stands for in the operators around it."""
    weights: dict[Axis, int] = {}
    for relation in analysis.relations:
        if isinstance(relation, Pin):
            continue
        per_index = sum(
            math.prod(size for size in axis.value.shape if isinstance(size, int)) // axis.size
            for axis in relation.axes
            if is_constant(axis.value) and axis.value.shape is not None
        )
        if per_index:
            for axis in relation.axes:
                if not is_constant(axis.value):
                    weights[axis] = weights.get(axis, 0) + per_index
    return weights


def _is_float(value: ir.Value) -> bool:
    # integer tensors describe shapes and tokens; nobody gates them
    return value.dtype is not None and value.dtype.is_floating_point()
