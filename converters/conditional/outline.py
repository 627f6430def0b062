"""How does a masked block become control flow that really skips it?

A batch of one sample:

    y = If(g != 0) { s + g * f(x) } else { s }

Any batch, and a block that treats samples one by one:

    chosen = NonZero(g)                                                        the samples that run
    y = If(any) {
            m = g[chosen] * f(x[chosen])
            If(all) { s + m } else { s, rows `chosen` replaced by s[chosen] + m }
        } else { s }

The weights lie in the branch, once: those of the outer graph onnxruntime does not lay out for its convolutions. A block
that mixes samples runs on the whole batch as soon as one sample needs it. Blocks within blocks become branches within
branches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from converters.compaction.names import register_initializer
from converters.conditional.nodes import Names, NodeList
from converters.conditional.regions import Order, Region, exclusive_nodes, find_regions
from converters.conditional.rows import PerSample, check_rows
from converters.conditional.values import dims_of, is_binary

OLDEST_OPSET = 13  # Squeeze and reductions with operands, ScatterND
_LARGEST_CLONE_BYTES = 1 << 20  # a weight that others read too stays outside of the branch above this size

_COPY = ".in."  # in the name of a weight that was copied into a branch

Form = Literal["single", "samples", "batch"]


@dataclass(frozen=True)
class Outlined:
    """One block that became a branch.

    Args:
        name: the module it was, as far as the names of its weights tell.
        gate, decision, chosen, form, parent, runs_if_true, is_binary: as in ConditionalBlock.
        reason: what mixes samples, where the form is "batch"; else "".
        nodes, gate_nodes: names of the block's nodes, and of those that compute nothing but its gate.
        parameters: elements of the weights that moved into the branch.
        branch: as in ConditionalBlock.
    """

    name: str
    gate: str
    decision: str
    chosen: str
    form: Form
    parent: int | None
    runs_if_true: bool
    is_binary: bool
    reason: str
    nodes: tuple[str, ...]
    gate_nodes: tuple[str, ...]
    parameters: int
    branch: str = ""


def outline(model: ir.Model, keep_masked: Iterable[str] = ()) -> tuple[Outlined, ...]:
    """Turn every conditional block of a model into a branch, in place.

    Args:
        model: masked and compact.
        keep_masked: names of blocks that are left as they are.
    """
    if model.graph.opset_imports.get("", 0) < OLDEST_OPSET:
        return ()
    work = _Work(Names(model), frozenset(keep_masked), [])
    _outline_graph(model.graph, work, None)
    return tuple(work.done)


def name_of(region: Region) -> str:
    """The dotted prefix that the names of the block's weights share, else the name of what the block computes.

    Matrices tell; where the exporter has renamed some, vectors that nothing else reads do too (one that several blocks
    share, such as ones, carries the name of one of them).
    """
    nodes = set(region.nodes)
    weights = [value for node in region.nodes for value in node.inputs if value is not None and value.is_initializer()]
    matrices = [value for value in weights if len(value.shape or ()) > 1]
    telling = [value for value in matrices if _is_dotted(value)]
    if len(telling) < len(matrices):
        telling += [
            value
            for value in weights
            if len(value.shape or ()) == 1 and _is_dotted(value) and all(use.node in nodes for use in value.uses())
        ]
    names = [str(value.name).split(".")[:-1] for value in telling]
    shared = names[0] if names else []
    for parts in names[1:]:
        while shared != parts[: len(shared)]:
            shared = shared[:-1]
    return ".".join(shared) or str(region.nodes[-1].outputs[0].name)


def _is_dotted(value: ir.Value) -> bool:
    return "." in str(value.name) and _COPY not in str(value.name)


def _names(nodes: Sequence[ir.Node]) -> tuple[str, ...]:
    return tuple(node.name or str(node.outputs[0].name) for node in nodes)


def _elements(weight: ir.Value) -> int:
    """Elements of a weight; integers and scalars are none."""
    tensor = weight.const_value
    if tensor is None or not tensor.dtype.is_floating_point() or not tuple(tensor.shape):
        return 0
    return int(tensor.size)


@dataclass(frozen=True)
class _Work:
    names: Names
    keep_masked: frozenset[str]
    done: list[Outlined]


# the position of a block in the list of those done, and its decision in the graph at hand, [rows]
_Decision = tuple[int, ir.Value]


def _outline_graph(graph: ir.Graph, work: _Work, parent: int | None) -> list[_Decision]:
    decisions: list[_Decision] = []
    regions = find_regions(graph)
    names = [name_of(region) for region in regions]  # before the first rewriting copies what blocks share
    for region, name in zip(regions, names, strict=True):
        if name not in work.keep_masked:
            decisions += _Block(graph, region, name, work, parent).rewrite()
    return decisions


class _Block:
    """The rewriting of one region."""

    def __init__(self, graph: ir.Graph, region: Region, name: str, work: _Work, parent: int | None) -> None:
        self.graph, self.region, self.name, self.work = graph, region, name, work
        self.verdict: PerSample | str = check_rows((*region.nodes, *region.tail), region.output, region.rows)
        self.form: Form = "single" if region.rows == 1 else "batch" if isinstance(self.verdict, str) else "samples"
        reason = self.verdict if isinstance(self.verdict, str) and self.form == "batch" else ""
        self.position = len(work.done)
        behind_gate = exclusive_nodes(region.gate, region.tail[0], region.gate_slot, Order(graph))
        work.done.append(
            Outlined(
                name=name,
                gate=str(region.gate.name),
                decision="",
                chosen="",
                form=self.form,
                parent=parent,
                runs_if_true=region.runs_if_true,
                is_binary=is_binary(region.gate),
                reason=reason,
                nodes=_names(region.nodes),
                gate_nodes=_names(behind_gate),
                parameters=0,
            )
        )
        self.front = self.list_of("gate")
        self.decide()

    def list_of(self, part: str) -> NodeList:
        return NodeList(self.work.names, f"{self.name}.{part}")

    def decide(self) -> None:
        """In front of the If: which samples run, whether any does, whether all do."""
        front, gate = self.front, self.region.gate
        int64, boolean = ir.DataType.INT64, ir.DataType.BOOL
        if not self.region.runs_if_true:
            gate = front.like("Not", [gate], "otherwise", gate)
        line = front.constant(np.array([-1], np.int64), "line")
        self.flat = front.add("Reshape", [gate, line], "values", gate.dtype, [self.region.rows])
        if self.form == "single":
            none = front.constant(np.array([], np.int64), "scalar")
            number = front.add("Reshape", [self.flat, none], "value", gate.dtype, [])
            self.any = front.add("Cast", [number], "runs", boolean, [], to=boolean)
            return
        self.rows = f"{self.name}.chosen"
        found = front.add("NonZero", [self.flat], "found", int64, [1, self.rows])
        self.chosen = front.add("Reshape", [found, line], "chosen", int64, [self.rows])
        self.pairs = front.add("Transpose", [found], "pairs", int64, [self.rows, 1], perm=[1, 0])
        count = front.add("Size", [self.chosen], "count", int64, [])
        self.any = front.add("Cast", [count], "any", boolean, [], to=boolean)
        if self.form == "samples":
            self.note(chosen=str(self.chosen.name))
            total = front.add("Size", [self.flat], "total", int64, [])
            self.all = front.add("Equal", [count, total], "all", boolean, [])

    def rewrite(self) -> list[_Decision]:
        """Replace the region by an If; returns its decision and those of the blocks within it."""
        region, output = self.region, self.region.output
        place = ir.node("Identity", [None], name="place")
        self.graph.insert_after(region.tail[-1], place)
        weights = self.move()
        then, inner = self.then_branch(weights)
        otherwise = self.else_branch(len(inner))
        branch = ir.node(
            "If",
            [self.any],
            {"then_branch": then, "else_branch": otherwise},
            num_outputs=1 + len(inner),
            name=self.work.names.new(f"{self.name}.If"),
        )
        self.note(branch=str(branch.name))
        for node in region.tail:
            for slot in range(len(node.inputs)):
                node.replace_input_with(slot, None)
        result = branch.outputs[0]
        result.type, result.shape = output.type, output.shape
        self.front.nodes.append(branch)
        self.front.insert_before(place, self.graph)
        self.graph.remove(place)
        return self.hand_over(result, list(zip(inner, branch.outputs[1:], strict=True)))

    def hand_over(self, result: ir.Value, inner: list[tuple[int, ir.Value]]) -> list[_Decision]:
        """The If's results take the place of the block's; the decisions in it are results too."""
        output = self.region.output
        name = output.name
        output.name = self.work.names.new(f"{self.name}.masked")
        output.replace_all_uses_with(result, replace_graph_outputs=True)
        result.name = name
        decisions: list[_Decision] = [(self.position, self.flat)]
        for position, value in inner:
            value.name = self.work.names.new(f"{self.work.done[position].name}.decision")
            value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([self.region.rows])
            decisions.append((position, value))
        for position, value in decisions:
            self.note(position, decision=str(value.name))
        return decisions

    def note(self, position: int | None = None, **known: Any) -> None:
        """Record what has become known of this block, or of one within it."""
        position = self.position if position is None else position
        self.work.done[position] = replace(self.work.done[position], **known)

    def move(self) -> list[ir.Value]:
        """Take the block's nodes out of the graph; returns their weights, which go along."""
        moved = {*self.region.nodes, *self.region.tail}
        self.graph.remove(list(moved))
        weights: dict[ir.Value, ir.Value] = {}
        for node in self.region.nodes:
            for slot, value in enumerate(node.inputs):
                if value is None or not value.is_initializer() or value.is_graph_input():
                    continue
                if value not in weights:
                    weights[value] = self.weight_inside(value, moved)
                if weights[value] is not value:
                    node.replace_input_with(slot, weights[value])
        inside = [weight for weight in weights.values() if weight.graph is None]
        self.note(parameters=sum(_elements(weight) for weight in inside))
        return inside

    def weight_inside(self, value: ir.Value, moved: set[ir.Node]) -> ir.Value:
        """The weight itself where the block alone reads it, else a copy, else (large) the one outside."""
        alone = all(use.node in moved for use in value.uses()) and not value.is_graph_output()
        if alone and value.graph is self.graph:
            del self.graph.initializers[str(value.name)]
            return value
        tensor = value.const_value
        if tensor is None or tensor.nbytes > _LARGEST_CLONE_BYTES:
            return value
        name = self.work.names.new(f"{value.name}{_COPY}{self.name}")
        # a tensor of its own: naming a value renames its tensor
        copy = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
        return ir.Value(name=name, shape=value.shape, type=value.type, const_value=copy)

    def then_branch(self, weights: Sequence[ir.Value]) -> tuple[ir.Graph, list[int]]:
        """The block and what follows it; also the positions of the blocks within it, whose decisions it returns."""
        region, head = self.region, self.list_of("run")
        taken: dict[ir.Value, ir.Value] = {}
        if isinstance(self.verdict, PerSample) and self.form == "samples":
            read = {value for node in region.nodes for value in node.inputs}
            taken = {value: self.take(head, value, axis) for value, axis in self.verdict.taken.items() if value in read}
            self.adapt(head, taken)
        body = ir.Graph(
            [],
            [],
            nodes=[*head.nodes, *region.nodes],
            initializers=[*weights, *head.initializers],
            name=f"{self.name}.run",
        )
        decisions = _outline_graph(body, self.work, self.position)
        tail = self.list_of("result")
        outputs = [self.result(tail, region.block, taken)]
        outputs += [self.decision_outside(tail, value) for _, value in decisions]
        for value in tail.initializers:
            register_initializer(body, value)
        body.extend(tail.nodes)
        body.outputs.extend(outputs)
        return body, [position for position, _ in decisions]

    def take(self, nodes: NodeList, value: ir.Value, axis: int = 0) -> ir.Value:
        """The rows of the chosen samples."""
        dims = dims_of(value)
        assert dims is not None
        shape = [*dims[:axis], self.rows, *dims[axis + 1 :]]
        return nodes.add("Gather", [value, self.chosen], f"{value.name}", value.dtype, shape, axis=axis)

    def adapt(self, head: NodeList, taken: dict[ir.Value, ir.Value]) -> None:
        """The block's nodes read the chosen rows, and shapes in it no longer speak of the whole batch."""
        assert isinstance(self.verdict, PerSample)
        for node in self.region.nodes:
            for slot, value in enumerate(node.inputs):
                if value in taken:
                    node.replace_input_with(slot, taken[value])
            if node in self.verdict.shapes:
                shape = head.constant(np.array(self.verdict.shapes[node], np.int64), "shape")
                node.replace_input_with(1, shape)
                node.attributes.pop("allowzero", None)
            for output in node.outputs:
                dims, rows = dims_of(output), self.verdict.rows.get(output)
                if dims and rows is not None:
                    count = self.rows if rows.is_one else None
                    output.shape = ir.Shape([*dims[: rows.axis], count, *dims[rows.axis + 1 :]])

    def result(self, nodes: NodeList, block: ir.Value, taken: dict[ir.Value, ir.Value]) -> ir.Value:
        """What the branch gives for the whole batch."""
        region = self.region
        if self.form == "samples":
            part = block
            if not region.is_selection and not is_binary(region.gate):
                part = nodes.like(
                    "Mul", [block, taken.get(region.gate) or self.take(nodes, region.gate)], "masked", block
                )
            return self.merge(nodes, part, taken)
        if region.is_selection:
            if self.form == "single":
                return block
            branches = [block, region.skip] if region.runs_if_true else [region.skip, block]
            return nodes.like("Where", [region.gate, *branches], "selected", region.output)
        part = block
        if self.form == "batch" or not is_binary(region.gate):
            part = nodes.like("Mul", [block, region.gate], "masked", region.output)
        return part if region.skip is None else nodes.like("Add", [region.skip, part], "sum", region.output)

    def merge(self, nodes: NodeList, part: ir.Value, taken: dict[ir.Value, ir.Value]) -> ir.Value:
        """Rows of the chosen samples, put back among the others."""
        output, skip = self.region.output, self.region.skip
        full, some = self.list_of("full"), self.list_of("some")
        if skip is not None and not self.region.is_selection:
            whole = full.like("Add", [skip, part], "sum", output)
            part_of_skip = taken.get(skip) or self.take(some, skip)
            part = some.like("Add", [part_of_skip, part], "part", part)
        else:
            whole = full.like("Identity", [part], "alone", output)
        base = skip if skip is not None else self.zeros(some)
        scattered = some.like("ScatterND", [base, self.pairs, part], "scattered", output)
        branches = {"then_branch": full.as_graph([whole], "all"), "else_branch": some.as_graph([scattered], "some")}
        result = nodes.add("If", [self.all], "merged", output.dtype, None, **branches)
        result.shape = output.shape
        return result

    def zeros(self, nodes: NodeList) -> ir.Value:
        """Zeros in the shape of the block's result."""
        output = self.region.output
        dims = dims_of(output)
        assert dims is not None
        assert output.dtype is not None
        zero = nodes.zero(output.dtype, "zero")
        rest = nodes.constant(np.array(dims[1:], np.int64), "rest")
        rows = nodes.add("Shape", [self.flat], "rows", ir.DataType.INT64, [1])
        shape = nodes.add("Concat", [rows, rest], "sizes", ir.DataType.INT64, [len(dims)], axis=0)
        return nodes.like("Expand", [zero, shape], "zeros", output)

    def else_branch(self, decisions: int) -> ir.Graph:
        nodes, skip = self.list_of("skip"), self.region.skip
        result = self.zeros(nodes) if skip is None else nodes.like("Identity", [skip], "skipped", self.region.output)
        outputs = [result]
        for _ in range(decisions):
            outputs.append(self.no_decision(nodes))
        return nodes.as_graph(outputs, "skip")

    def no_decision(self, nodes: NodeList) -> ir.Value:
        """Zeros [rows]: a block in this one ran for nobody."""
        rows = nodes.add("Shape", [self.flat], "samples", ir.DataType.INT64, [1])
        zero = nodes.zero(ir.DataType.FLOAT, "never")
        return nodes.add("Expand", [zero, rows], "none", ir.DataType.FLOAT, [self.region.rows])

    def decision_outside(self, nodes: NodeList, value: ir.Value) -> ir.Value:
        """A decision about the chosen samples as one about all: float, [rows]."""
        single, boolean = ir.DataType.FLOAT, ir.DataType.BOOL
        is_nonzero = nodes.add("Cast", [value], "nonzero", boolean, None, to=boolean)
        ran = nodes.add("Cast", [is_nonzero], "ran", single, None, to=single)
        if self.form != "samples":
            return ran
        base = self.no_decision(nodes)
        return nodes.add("ScatterND", [base, self.pairs, ran], "decision", single, [self.region.rows])
