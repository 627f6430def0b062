"""Which parts of fused attention belong together: a head with its queries, keys and values, a feature of all heads."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import Axis, Facts, Liveness, Mask, Permission
from converters.compaction.relations import Relation
from converters.compaction.rewrite import Edit


class Heads(Relation):
    """Axes that hold `groups` groups each, and lose whole groups only.

    Args:
        scores: axes that decide the weights (queries, keys, masks); every output of the group reads them.
        values: axis of the values, laid out as [groups, width]; None if `scores` alone make the output.
        output: axis laid out as [groups, repeat, width].
    """

    def __init__(
        self, node: ir.Node, scores: list[Axis], values: Axis | None, output: Axis, groups: int, repeat: int
    ) -> None:
        super().__init__(node, [*scores, *([] if values is None else [values]), output])
        self.scores, self.values, self.output = scores, values, output
        self.groups, self.repeat = groups, repeat

    @property
    def reason(self) -> str:
        return "heads go as a whole, and another part of the head, or of its group, stays"

    def forward(self, facts: Facts) -> None:
        if self.values is None:
            zero = np.ones(self.output.size, bool)
            for axis in self.scores:
                whole: Mask = np.logical_and.reduce(facts.is_zero(axis).reshape(self.groups, -1), axis=1)
                zero &= np.repeat(whole, self.output.size // self.groups)
        else:
            by_group = facts.is_zero(self.values).reshape(self.groups, 1, -1)
            zero = np.repeat(by_group, self.repeat, axis=1).ravel()
        facts.learn(self.output, np.where(zero, 0.0, np.nan))

    def require(self, live: Liveness, facts: Facts) -> None:
        needed = live.needed(self.output).reshape(self.groups, self.repeat, -1)
        whole: Mask = np.logical_or.reduce(needed.reshape(self.groups, -1), axis=1)
        for axis in self.scores:
            live.need(axis, np.repeat(whole, axis.size // self.groups))
        if self.values is not None:
            live.need(self.values, needed.any(axis=1).ravel())

    def shrink(self, permission: Permission) -> None:
        stays = np.zeros(self.groups, bool)
        for axis in self.axes:
            stays |= (~permission.removable(axis)).reshape(self.groups, -1).any(axis=1)
        for axis in self.axes:
            permission.withhold(axis, np.repeat(stays, axis.size // self.groups))

    def groups_left(self, edit: Edit) -> int:
        """How many groups stay."""
        stays = ~edit.removed(self.output).reshape(self.groups, -1)
        return int(np.logical_or.reduce(stays, axis=1).sum())


class HeadGrid(Heads):
    """As `Heads`, on axes that hold heads and features: a feature goes from all heads that stay, or from none.

    A feature of queries and keys may go where it adds nothing to the scores of any head, because the query or the
    key is zero there; a feature of the values goes with that of the output.

    Args:
        query: laid out as [groups, repeat, d]; key: [groups, d]; values: [groups, w]; output: [groups, repeat, w].
        per_head: axis of a mask with one entry per query head.
    """

    def __init__(
        self,
        node: ir.Node,
        query: Axis,
        key: Axis,
        values: Axis,
        output: Axis,
        per_head: list[Axis],
        groups: int,
        repeat: int,
    ) -> None:
        super().__init__(node, [query, key, *per_head], values, output, groups, repeat)
        self.query, self.key, self.per_head = query, key, per_head
        self._silent: Mask = np.zeros((groups, key.size // groups), bool)

    def require(self, live: Liveness, facts: Facts) -> None:
        super().require(live, facts)
        queries = facts.is_zero(self.query).reshape(self.groups, self.repeat, -1)
        needed: Mask = np.logical_or.reduce(live.needed(self.output).reshape(self.groups, -1), axis=1)
        silent = facts.is_zero(self.key).reshape(self.groups, -1) | np.logical_and.reduce(queries, axis=1)
        self._silent = silent | ~needed[:, None]

    def shrink(self, permission: Permission) -> None:
        assert self.values is not None
        stays = np.zeros(self.groups, bool)
        for axis in self.axes:
            stays |= (~permission.removable(axis)).reshape(self.groups, -1).any(axis=1)
        scored = ~np.logical_and.reduce(self._silent[stays], axis=0)
        for axis in (self.query, self.key):
            scored = scored | (~permission.removable(axis)).reshape(-1, scored.size).any(axis=0)
        width = self.values.size // self.groups
        valued = np.zeros(width, bool)
        for axis in (self.values, self.output):
            valued |= (~permission.removable(axis)).reshape(-1, width).any(axis=0)
        for axis, features in (
            (self.query, scored),
            (self.key, scored),
            (self.values, valued),
            (self.output, valued),
            *((axis, np.ones(1, bool)) for axis in self.per_head),
        ):
            repeats = axis.size // (self.groups * features.size)
            permission.withhold(axis, (np.repeat(stays, repeats)[:, None] & features).ravel())
