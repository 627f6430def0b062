"""Forward and backward pass: which relations hold in this graph, which constants, which needs?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from converters.compaction.axes import DynamicAxisError, Facts, Liveness, axes_of
from converters.compaction.map_folding import permit_maps
from converters.compaction.maps import Maps
from converters.compaction.registry import FUNCTIONS, RULES, Refusal, RuleFunction, operator_key
from converters.compaction.relations import Pin, Relation, Tie
from converters.compaction.severing import ConstantOutput, Severed, find_constant_outputs, find_severed


@dataclass(frozen=True)
class Analysis:
    """All that the later stages know about the graph as it was before any change."""

    relations: tuple[Relation, ...]
    facts: Facts
    maps: Maps
    live: Liveness
    without_rule: tuple[str, ...]
    of_node: dict[ir.Node, tuple[Relation, ...]] = field(repr=False)
    severed: tuple[Severed, ...] = ()
    constant_outputs: tuple[ConstantOutput, ...] = ()


def analyse(graph: ir.Graph) -> Analysis:
    """State the relations of every node, propagate constants forward and need backward."""
    facts = Facts()
    maps = Maps(facts, FUNCTIONS)
    live = Liveness()
    relations: list[Relation] = []
    of_node: dict[ir.Node, tuple[Relation, ...]] = {}
    without_rule: set[str] = set()

    for value in graph.inputs:
        relations += [Pin(None, axis, "it is an input of the model") for axis in axes_of(value)]
    for node in graph:
        if operator_key(node) not in RULES:
            without_rule.add(operator_key(node))
        stated = relate(node)
        for relation in stated:
            relation.forward(facts)
        maps.forward(node, stated)
        of_node[node] = tuple(stated)
        relations += stated
    constant_outputs = find_constant_outputs(graph, facts)
    written = {output.value for output in constant_outputs}
    for value in graph.outputs:
        if value not in written:
            relations += [Pin(None, axis, "it is an output of the model") for axis in axes_of(value)]

    severed = [item for item in find_severed(list(of_node), facts, maps) if _is_tied(of_node[item.node])]
    for item in severed:
        axes = frozenset(axes_of(item.node.inputs[item.slot]))
        for relation in of_node[item.node]:
            relation.severed |= axes
    permit_maps(relations, maps, facts)
    for relation in reversed(relations):
        relation.require(live, facts)
    return Analysis(
        tuple(relations),
        facts,
        maps,
        live,
        tuple(sorted(without_rule)),
        of_node,
        tuple(severed),
        tuple(constant_outputs),
    )


def _is_tied(stated: Iterable[Relation]) -> bool:
    """Whether the node's rule described it fully, so that leaving an operand out leaves its axes free."""
    return not any(isinstance(relation, Pin) for relation in stated)


def relate(node: ir.Node) -> list[Relation]:
    """The node's relations; whatever its rule leaves unsaid is pinned, so silence is always sound."""
    rule = RULES.get(operator_key(node))
    name = f"{node.op_type} '{node.name}'"
    stated: list[Relation] = []
    if rule is None:
        silence = f"no rule describes the operator {operator_key(node)}"
    else:
        answer = _checked(rule, node)
        if isinstance(answer, Refusal):
            silence = answer.reason
        else:
            stated = answer
            silence = f"{name} mixes this axis or needs its full length"
    mentioned = {axis for relation in stated for axis in relation.axes}
    touched = [axis for value in (*node.inputs, *node.outputs) for axis in axes_of(value)]
    stated += [Pin(node, axis, silence) for axis in dict.fromkeys(touched) if axis not in mentioned]
    for value in captured_values(node):
        stated += [Pin(node, axis, f"a subgraph of {name} reads it") for axis in axes_of(value)]
    return stated


def _checked(rule: RuleFunction, node: ir.Node) -> list[Relation] | Refusal:
    """The rule's answer, refused where the shapes that the file declares contradict each other."""
    try:
        answer = rule(node)
        if isinstance(answer, Refusal):
            return answer
        for relation in answer:
            sizes = {axis.size for axis in relation.axes}
            if isinstance(relation, Tie) and len(sizes) > 1:
                return Refusal(f"the shapes around this {node.op_type} contradict each other")
    except DynamicAxisError as error:
        return Refusal(f"the shapes around this {node.op_type} contradict each other: {error}")
    return answer


def captured_values(node: ir.Node) -> list[ir.Value]:
    """Values of the outer graph that the node's subgraphs read (at any depth)."""
    captured: dict[ir.Value, None] = {}
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            bodies = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            bodies = list(attribute.as_graphs())
        else:
            continue
        for body in bodies:
            inner = {value for item in body.all_nodes() for value in item.outputs}
            inner |= set(body.inputs) | set(body.initializers.values())
            for item in body.all_nodes():
                captured.update(dict.fromkeys(v for v in item.inputs if v is not None and v not in inner))
            captured.update(dict.fromkeys(v for v in body.outputs if v not in inner))
    return list(captured)
