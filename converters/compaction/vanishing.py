"""Which values disappear from the graph because every reader of them does, or stops reading them?"""

from __future__ import annotations

import onnx_ir as ir

from converters.compaction.analysis import Analysis
from converters.compaction.axes import Axis, Permission
from converters.compaction.relations import Concatenate


class Vanishing:
    """One backward sweep over the graph for the current permissions.

    A read disappears when the operand becomes an initializer, when a Concat drops a part of which nothing
    stays, or when nothing is left of its node's outputs. A value all of whose reads disappear needs no index.
    """

    def __init__(self, analysis: Analysis, permission: Permission) -> None:
        self._analysis = analysis
        self._permission = permission
        self._severed = {(severed.node, severed.slot) for severed in analysis.severed}
        self._constant_outputs = {output.value for output in analysis.constant_outputs}
        self._nodes: set[ir.Node] = set()
        for node in reversed(analysis.of_node):
            if all(self.goes(output) for output in node.outputs):
                self._nodes.add(node)

    def node_goes(self, node: ir.Node | None) -> bool:
        """Whether nothing of the node is left."""
        return node in self._nodes

    def goes(self, value: ir.Value) -> bool:
        """Whether nobody reads the value any more."""
        if value.is_graph_input() or (value.is_graph_output() and value not in self._constant_outputs):
            return False
        return all(self._read_goes(use.node, use.idx) for use in value.uses())

    def _read_goes(self, node: ir.Node, slot: int) -> bool:
        if node in self._nodes or (node, slot) in self._severed:
            return True
        stated = self._analysis.of_node.get(node)
        return stated is not None and slot in dropped_parts(stated, self._permission)


def dropped_parts(stated: tuple[object, ...], permission: Permission) -> list[int]:
    """The inputs that a Concat loses, because none of their indices stays while some of the output's do."""
    for relation in stated:
        if isinstance(relation, Concatenate) and not permission.removable(relation.output).all():
            return [
                slot
                for slot, (axis, _) in enumerate(relation.parts)
                if axis is not None and _is_empty(permission, axis)
            ]
    return []


def _is_empty(permission: Permission, axis: Axis) -> bool:
    return bool(permission.removable(axis).all())
