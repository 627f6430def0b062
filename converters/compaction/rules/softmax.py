"""Rules for Softmax, LogSoftmax, Hardmax: the axis they run over keeps all but minus infinity, all others are tied.

An entry that is zero still takes part in the sum. One that is minus infinity does not, and comes out as zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import Axis, Constants, Facts, Liveness, Mask, Permission, rank, static_size
from converters.compaction.registry import Refusal, rule
from converters.compaction.relations import Relation, Tie
from converters.compaction.rules.common import axis_of, int_attribute

# Before this version the axis only says where the dimensions are split; all from there on are one.
_FIRST_SINGLE_AXIS = 13


class Shares(Relation):
    """The axis that a softmax runs over: every output reads every input, and only minus infinity may go."""

    def __init__(self, node: ir.Node, data: Axis, output: Axis) -> None:
        super().__init__(node, [data, output])
        self.data, self.output = data, output
        self._permitted: Mask = np.zeros(data.size, bool)
        self._down: Mask = np.zeros(data.size, bool)

    @property
    def reason(self) -> str:
        return "a softmax sums over it, so that only minus infinity may go"

    def _closed(self, facts: Facts) -> Mask:
        known = facts.constants(self.data)
        closed: Mask = np.zeros(self.data.size, bool) if known is None else known == -np.inf
        return closed if not closed.all() else ~closed  # of nothing but minus infinity there is no softmax

    def forward(self, facts: Facts) -> None:
        facts.learn(self.output, np.where(self._closed(facts), 0.0, np.nan))

    def require(self, live: Liveness, facts: Facts) -> None:
        reads = bool(live.needed(self.output).any())
        live.need(self.data, reads)
        self._down = self._closed(facts)
        self._permitted = self._down | (not reads)

    def shrink(self, permission: Permission) -> None:
        permission.withhold(self.data, ~self._permitted)
        stays = ~permission.removable(self.data)
        if stays.any() and not (stays & ~self._down).any():
            # of nothing but minus infinity there is no softmax, not even one that nobody needs
            permission.withhold(self.data, np.arange(self.data.size) == np.argmin(self._down))
        permission.withhold(self.output, ~permission.removable(self.data), permission.cause(self.data))
        permission.withhold(self.data, ~permission.removable(self.output), permission.cause(self.output))


@rule("Softmax", "LogSoftmax", "Hardmax")
def relate_softmax(node: ir.Node) -> list[Relation] | Refusal:
    """A slice that is one constant comes out even: 1 / n, or -log(n)."""
    x, output = node.inputs[0], node.outputs[0]
    size = None if x is None else rank(x)
    if x is None or size is None or rank(output) != size or node.graph is None:
        return Refusal(f"the shapes around this {node.op_type} are not known")
    single = node.graph.opset_imports.get("", 0) >= _FIRST_SINGLE_AXIS
    first = int_attribute(node, "axis", -1 if single else 1) % size
    mixed = {first} if single else set(range(first, size))
    lengths = [static_size(x, dim) for dim in mixed]
    count = math.prod(length for length in lengths if length is not None)
    even: float | None = None
    if None not in lengths and node.op_type != "Hardmax":
        even = 1 / count if node.op_type == "Softmax" else -math.log(count)
    relations: list[Relation] = []
    for dim in range(size):
        before, after = axis_of(x, dim), axis_of(output, dim)
        if single and dim == first and node.op_type == "Softmax" and before is not None and after is not None:
            relations.append(Shares(node, before, after))
        if dim not in mixed and before is not None and after is not None:
            relations.append(Tie(node, [before], [after], None if even is None else _even_out(before, even)))
    return relations


def _even_out(source: Axis, even: float) -> Callable[[Facts], Constants]:
    def transfer(facts: Facts) -> Constants:
        constants = facts.constants(source)
        finite = np.zeros(source.size, bool) if constants is None else np.isfinite(constants)
        return np.where(finite, even, np.nan)

    return transfer
