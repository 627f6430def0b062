"""Does a block treat every sample by itself, so that it may run on some of them alone?

A value holds rows when one axis is the batch, k rows for each sample and sample by sample; everything else must be the
same for all samples. An operator passes rows on when row i of its result depends on row i of its operands alone
(row_rules.py). What no rule describes mixes samples, as far as anyone knows: the block then runs on the whole batch or
not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from converters.conditional.row_rules import RULES, Rows, rule_reshape
from converters.conditional.values import Dim, constant_of, dims_of


class Mixing(Exception):  # noqa: N818 - a verdict, caught below
    """Why an operator may not run on some samples alone."""


@dataclass(frozen=True)
class PerSample:
    """A block that may run on some samples alone.

    Args:
        taken: values from outside whose rows of the chosen samples are taken, and along which axis.
        shapes: new constant shape operand for each Reshape (where 0 copies a size), without the number of rows.
        rows: rows of each result in the block, None where all samples share it.
    """

    taken: Mapping[ir.Value, int]
    shapes: Mapping[ir.Node, tuple[int, ...]]
    rows: Mapping[ir.Value, Rows | None]


def check_rows(nodes: tuple[ir.Node, ...], result: ir.Value, rows: Dim) -> PerSample | str:
    """Whether `result` [rows, ...] depends row by row on what the nodes read; a string says what mixes samples."""
    state = _State(rows)
    try:
        for node in nodes:
            kind = state.kind_of_node(node)
            for output in node.outputs:
                state.kinds[output] = kind
        if state.kinds.get(result) != Rows(0):
            raise Mixing(f"its result {result.name} does not hold one row per sample")
    except Mixing as reason:
        return str(reason)
    return PerSample(state.taken, state.shapes, state.kinds)


class _State:
    def __init__(self, rows: Dim) -> None:
        self.rows = rows
        self.kinds: dict[ir.Value, Rows | None] = {}  # None: the same for all samples
        self.taken: dict[ir.Value, int] = {}
        self.shapes: dict[ir.Node, tuple[int, ...]] = {}

    def kind(self, value: ir.Value | None) -> Rows | None:
        if value is None:
            return None
        if value in self.kinds:
            return self.kinds[value]
        if constant_of(value) is not None:
            return None
        dims = dims_of(value)
        if dims is None:
            raise Mixing(f"the shape of {value.name} is unknown")
        axes = [axis for axis, dim in enumerate(dims) if dim == self.rows]
        if isinstance(self.rows, int):  # another axis may have that size by chance
            axes = [axis for axis in axes if axis == 0]
        if len(axes) > 1:
            raise Mixing(f"{value.name} has several axes of the batch's size")
        if not axes:
            return None
        self.taken[value] = axes[0]
        return Rows(axes[0])

    def kind_of_node(self, node: ir.Node) -> Rows | None:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise Mixing(f"{_named(node)} holds a subgraph")
        kinds = [self.kind(value) for value in node.inputs]
        if all(kind is None for kind in kinds):
            return None
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if node.op_type == "Reshape":
            reshaped = rule_reshape(node, kinds, self.rows)
            if reshaped is None:
                raise Mixing(f"{_named(node)} mixes samples, or may")
            found, self.shapes[node] = reshaped
            return found
        if rule is None:
            raise Mixing(f"no rule says that {_named(node)} keeps samples apart")
        result = rule(node, kinds)
        if result is None:
            raise Mixing(f"{_named(node)} mixes samples, or may")
        return result


def _named(node: ir.Node) -> str:
    return f"{node.op_type} {node.name or node.outputs[0].name}"
