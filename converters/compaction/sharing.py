"""Which readers of one value could each take their own indices of it, because they need different ones?

A position bias that is computed once and added in every layer, or queries that several attention layers share, tie the
heads of all these layers to each other: a head stays in all as long as one needs it. With a Gather of the value in
front of each reader every layer keeps its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from converters.compaction.analysis import Analysis
from converters.compaction.axes import Axis, Permission, is_constant
from converters.compaction.relations import Tie
from converters.compaction.selection import Selection

# operators that work index by index on two operands; along the leading dimensions a product of matrices does so too
_READERS = frozenset({"Add", "MatMul", "Mul", "Sub"})


@dataclass(frozen=True)
class Sharing:
    """One reader of a shared value, which may take the indices of `source` that stay on `taken`, its result's axis."""

    source: Axis
    taken: Axis
    relation: Tie
    slot: int

    def take(self, taken: bool) -> None:
        """Mark the relation, or take the mark back."""
        self.relation.selected = self.source if taken else None

    def gathers(self, permission: Permission) -> list[tuple[Axis, int]]:
        """As in `trials.Option`."""
        wanted = ~permission.removable(self.taken)
        if not wanted.any() or np.array_equal(wanted, ~permission.removable(self.source)):
            return []
        return [(self.source, int(wanted.sum()))]

    def selections(self) -> list[Selection]:
        """As in `trials.Option`."""
        return [Selection(self.relation, self.slot, self.source, self.taken)]


def sharing_options(analysis: Analysis, permission: Permission) -> list[Sharing]:
    """Readers that could gain: that keep indices which they do not need, or are one of several of their kind."""
    found: dict[Tie, Sharing] = {}  # one operand of a node at most
    for node, stated in analysis.of_node.items():
        if not _is_reader(node):
            continue
        for slot, value in enumerate(node.inputs):
            if value is None or is_constant(value) or value is node.inputs[1 - slot] or value.is_graph_input():
                continue
            readers = {use.node for use in value.uses()}
            if len(readers) < 2:
                continue
            alike = sum(map(_is_reader, readers)) > 1
            for relation in stated:
                if not isinstance(relation, Tie) or relation.severed or len(relation.outputs) != 1:
                    continue
                sources = [axis for axis in relation.inputs if axis.value is value]
                others = [axis for axis in relation.inputs if axis.value is not value and not is_constant(axis.value)]
                taken = relation.outputs[0]
                held_up = ~permission.removable(taken) & ~analysis.live.needed(taken)
                if len(sources) == 1 and others and (alike or held_up.any()):
                    found.setdefault(relation, Sharing(sources[0], taken, relation, slot))
    return list(found.values())


def _is_reader(node: ir.Node) -> bool:
    return node.op_type in _READERS and node.domain in ("", "ai.onnx") and len(node.inputs) == 2
