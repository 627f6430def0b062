"""Which part of a graph is computed only to be multiplied by a gate, or to be selected by a condition?

    y = s + g * f(x)        Mul, then Add          s is what skipping gives
    y = g * f(x)            Mul alone              skipping gives zeros
    y = c ? f(x) : s        Where                  s is what skipping gives

with one number g, or one bool c, per sample. The block is f: the nodes whose results nothing else reads. Leaving them
out where g is exactly 0 changes nothing, provided that f(x) is finite: 0 times infinity would be NaN in the masked
model, and is 0 in the conditional one. For Where it holds in any case.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from converters.conditional.values import Dim, can_be_zero, dims_of, is_per_sample

_RANDOM = frozenset({"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}) | {
    "RandomUniformLike"
}


@dataclass(frozen=True)
class Region:
    """One conditional block, as places in the graph: what lies there may be replaced while others are rewritten.

    Args:
        nodes: the block, in graph order.
        tail: nodes behind it that belong to the decision: the Mul and its Add, the Mul alone, or the Where.
        gate_slot, block_slot: operands of the tail's first node.
        skip_slot: operand of the tail's last node that the block's absence leaves, None for zeros.
        rows: size or symbol of the batch axis.
    """

    nodes: tuple[ir.Node, ...]
    tail: tuple[ir.Node, ...]
    gate_slot: int
    block_slot: int
    skip_slot: int | None
    rows: Dim

    @property
    def gate(self) -> ir.Value:
        """What decides, one number or bool per sample."""
        return _operand(self.tail[0], self.gate_slot)

    @property
    def block(self) -> ir.Value:
        """The result of the block."""
        return _operand(self.tail[0], self.block_slot)

    @property
    def skip(self) -> ir.Value | None:
        """What the block's absence leaves, None for zeros."""
        return None if self.skip_slot is None else _operand(self.tail[-1], self.skip_slot)

    @property
    def output(self) -> ir.Value:
        """What the rest of the model reads."""
        return self.tail[-1].outputs[0]

    @property
    def is_selection(self) -> bool:
        """A Where, not a product."""
        return self.tail[0].op_type == "Where"

    @property
    def runs_if_true(self) -> bool:
        """Whether the block runs where the gate is not 0; False for the last operand of a Where."""
        return not self.is_selection or self.block_slot == 1


def _operand(node: ir.Node, slot: int) -> ir.Value:
    value = node.inputs[slot]
    assert value is not None
    return value


class Order:
    """Positions of a graph's nodes, and for each node of a subgraph the node that it is a part of."""

    def __init__(self, graph: ir.Graph) -> None:
        self.of: dict[ir.Node, int] = {node: position for position, node in enumerate(graph)}
        self.owner: dict[ir.Node, ir.Node] = {}
        for node in self.of:
            for inner in _with_inner(node):
                self.owner[inner] = node


def find_regions(graph: ir.Graph) -> list[Region]:
    """The conditional blocks of one graph that lie in no other block, in graph order."""
    order = Order(graph)
    found = all_regions(graph)
    found.sort(key=lambda region: -len(region.nodes))
    chosen: list[Region] = []
    taken: set[ir.Node] = set()
    for region in found:
        mine = {*region.nodes, *region.tail}
        if mine.isdisjoint(taken):
            chosen.append(region)
            taken |= mine
    return sorted(chosen, key=lambda region: order.of[region.tail[0]])


def all_regions(graph: ir.Graph) -> list[Region]:
    """Every conditional block of one graph, those that lie in others included."""
    order = Order(graph)
    return [region for node in graph for region in _regions_at(node, order)]


def _regions_at(node: ir.Node, order: Order) -> list[Region]:
    if node.domain not in ("", "ai.onnx"):
        return []
    if node.op_type == "Mul":
        found = [_masked(node, slot, order) for slot in (0, 1)]
    elif node.op_type == "Where":
        found = [_selected(node, slot, order) for slot in (1, 2)]
    else:
        found = []
    return [region for region in found if region is not None]


def _masked(node: ir.Node, slot: int, order: Order) -> Region | None:
    """The block behind operand `slot` of a Mul whose other operand is the gate."""
    output, block, gate = node.outputs[0], node.inputs[slot], node.inputs[1 - slot]
    dims = dims_of(output)
    if block is None or gate is None or block is gate or not dims or dims[0] is None or dims_of(block) != dims:
        return None
    if not is_per_sample(gate, dims[0], len(dims)) or not can_be_zero(gate):
        return None
    nodes = exclusive_nodes(block, node, slot, order)
    if not nodes:
        return None
    uses = list(output.uses())
    if len(uses) == 1 and not output.is_graph_output() and _is_sum(uses[0].node, order):
        total, skip_slot = uses[0].node, 1 - uses[0].idx
        skip = total.inputs[skip_slot]
        if skip is not None and skip is not output and dims_of(skip) == dims and None not in dims:
            return Region(nodes, (node, total), 1 - slot, slot, skip_slot, dims[0])
    if any(not isinstance(dim, int) for dim in dims[1:]):
        return None  # nobody says what shape the zeros would have
    return Region(nodes, (node,), 1 - slot, slot, None, dims[0])


def _is_sum(node: ir.Node, order: Order) -> bool:
    return node in order.of and node.op_type == "Add" and node.domain in ("", "ai.onnx")


def _selected(node: ir.Node, slot: int, order: Order) -> Region | None:
    """The block behind one branch of a Where; the other branch is what skipping gives."""
    condition, block, skip = node.inputs[0], node.inputs[slot], node.inputs[3 - slot]
    dims = dims_of(node.outputs[0])
    if condition is None or block is None or skip is None or block is skip or not dims or dims[0] is None:
        return None
    if condition.producer() is None or not is_per_sample(condition, dims[0], len(dims)):
        return None
    if None in dims or dims_of(block) != dims or dims_of(skip) != dims:
        return None
    nodes = exclusive_nodes(block, node, slot, order)
    return Region(nodes, (node,), 0, slot, 3 - slot, dims[0]) if nodes else None


def exclusive_nodes(value: ir.Value, reader: ir.Node, slot: int, order: Order) -> tuple[ir.Node, ...]:
    """The nodes that only serve operand `slot` of a node, in graph order; empty where something forbids to move them.

    Random numbers must be drawn whether or not anyone needs them: leaving some out would change the others.
    """
    mine: set[ir.Node] = set()
    behind = _ancestors(value, order)
    for node in sorted(behind, key=lambda item: -order.of[item]):
        outputs_are_mine = all(
            not output.is_graph_output()
            and all(
                (use.node is reader and use.idx == slot) or order.owner.get(use.node) in mine for use in output.uses()
            )
            for output in node.outputs
        )
        if outputs_are_mine:
            mine.add(node)
    if any(node.op_type in _RANDOM for node in mine):
        return ()
    return tuple(sorted(mine, key=lambda item: order.of[item]))


def _ancestors(value: ir.Value, order: Order) -> set[ir.Node]:
    """All nodes of the graph that the value is computed from; what subgraphs of theirs read included."""
    found: set[ir.Node] = set()
    stack = [value]
    while stack:
        node = stack.pop().producer()
        if node is None or node in found or node not in order.of:
            continue
        found.add(node)
        stack.extend(read_values(node))
    return found


def read_values(node: ir.Node) -> list[ir.Value]:
    """The values that a node reads, and those of outer graphs that its subgraphs read."""
    values = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            values += _captured(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            values += [value for graph in attribute.as_graphs() for value in _captured(graph)]
    return values


def _with_inner(node: ir.Node) -> Iterator[ir.Node]:
    yield node
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().all_nodes()
        elif attribute.type == ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                yield from graph.all_nodes()


def _captured(graph: ir.Graph) -> list[ir.Value]:
    own = {*graph.inputs, *graph.initializers.values(), *(output for node in graph for output in node.outputs)}
    read = [value for node in graph for value in read_values(node)] + list(graph.outputs)
    return [value for value in read if value not in own]
