"""Relations of axes that share one index space: position i here is position i there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import Axis, Constants, Facts, Liveness, Mask, Permission, Twins
from converters.compaction.relations.base import Relation


class Tie(Relation):
    """All axes share one index space: index i stays in all of them or goes from all of them.

    Args:
        inputs, outputs: axes of equal size.
        transfer: constants of the outputs, computed from the facts; None claims nothing.
        unread: which indices of an input the outputs do not depend on; None means all are read.
        twins: twins of the outputs, computed from the facts; None claims nothing.
    """

    def __init__(
        self,
        node: ir.Node | None,
        inputs: Sequence[Axis],
        outputs: Sequence[Axis],
        transfer: Callable[[Facts], Constants | None] | None = None,
        unread: Callable[[Facts, Axis], Mask | None] | None = None,
        twins: Callable[[Facts], Twins | None] | None = None,
    ) -> None:
        super().__init__(node, [*inputs, *outputs])
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.transfer = transfer
        self._unread = unread
        self._twins = twins

    @property
    def reason(self) -> str:
        return "it shares its index with an axis that stays"

    def forward(self, facts: Facts) -> None:
        if self.transfer is not None:
            constants = self.transfer(facts)
            for output in self.outputs:
                facts.learn(output, constants)
        if self._twins is not None:
            twins = self._twins(facts)
            for output in self.outputs:
                facts.learn_twins(output, twins)

    def require(self, live: Liveness, facts: Facts) -> None:
        needed = np.zeros(self.axes[0].size, bool)
        for output in self.outputs:
            needed |= live.needed(output)
        for axis in self.inputs:
            if axis in self.severed:
                continue
            unread = None if self._unread is None else self._unread(facts, axis)
            live.need(axis, needed if unread is None else needed & ~unread)

    def shrink(self, permission: Permission) -> None:
        tied = [axis for axis in self.axes if axis not in self.severed] if self.severed else self.axes
        for source in tied:
            kept = ~permission.removable(source)
            if kept.any() and source != self.selected:
                for target in tied:
                    if target is not source:
                        permission.withhold(target, kept, permission.cause(source))


class Same(Tie):
    """The output axis is the input axis, number for number: everything known of one holds for the other."""

    def __init__(self, node: ir.Node | None, source: Axis, output: Axis) -> None:
        super().__init__(
            node,
            [source],
            [output],
            transfer=lambda facts: facts.constants(source),
            twins=lambda facts: facts.twins(source),
        )
