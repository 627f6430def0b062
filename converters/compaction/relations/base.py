"""What is a relation, and what are the two that say least: everything stays, or nothing is read?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import Axis, Facts, Liveness, Permission


class Relation:
    """Base of all relations: which node states it, and which axes it covers.

    Attributes:
        severed: axes of operands that become initializers, so that this relation no longer reads them.
        selected: an axis of which a Gather in front of the node takes just the indices that the node uses,
            so that the others may stay on that axis without staying in the node.
    """

    evens_out = False

    def __init__(self, node: ir.Node | None, axes: Sequence[Axis]) -> None:
        self.node = node
        self.axes = tuple(dict.fromkeys(axes))
        self.severed: frozenset[Axis] = frozenset()
        self.selected: Axis | None = None

    @property
    def reason(self) -> str:
        """Why this relation keeps an index that is dead, as a clause for people."""
        raise NotImplementedError

    def forward(self, facts: Facts) -> None:
        """Propagate constants from inputs to outputs."""

    def require(self, live: Liveness, facts: Facts) -> None:
        """Propagate need from outputs to inputs."""

    def shrink(self, permission: Permission) -> None:
        """Withhold what must stay, given what else stays."""

    def even_out(self, permission: Permission) -> None:
        """Withhold what makes counts equal; runs after all `shrink` steps have settled."""

    def forget_choices(self) -> None:
        """Take back where a Gather was to stand, before the permissions are solved from the start."""
        self.selected = None


class Pin(Relation):
    """Every index of the axis stays and is needed."""

    def __init__(self, node: ir.Node | None, axis: Axis, reason: str) -> None:
        super().__init__(node, [axis])
        self._reason = reason

    @property
    def reason(self) -> str:
        return self._reason

    def require(self, live: Liveness, facts: Facts) -> None:
        live.need(self.axes[0], True)

    def shrink(self, permission: Permission) -> None:
        permission.withhold(self.axes[0], np.ones(self.axes[0].size, bool))


class Unread(Relation):
    """The node does not read along this axis at all (a Shape that asks for other dimensions)."""

    def __init__(self, node: ir.Node, axis: Axis) -> None:
        super().__init__(node, [axis])

    @property
    def reason(self) -> str:
        return "nothing"
