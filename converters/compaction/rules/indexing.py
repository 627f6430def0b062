"""Rules for operators that take or join parts of an axis: Concat, Split, Slice, Gather, Pad."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import Axis, Constants, Facts, array_of, as_float64, axes_of, rank, static_size
from converters.compaction.registry import Refusal, fixup, rule
from converters.compaction.relations import Concatenate, Relation, Same, Select, Take, Tie
from converters.compaction.rewrite import Edit
from converters.compaction.rules.common import (
    agreed_constants,
    axis_of,
    constant_ints,
    int_attribute,
    ints_attribute,
    operand,
    string_attribute,
)


def _pass_on(node: ir.Node, source: Axis, target: Axis) -> Same:
    return Same(node, source, target)


@rule("Concat")
def relate_concat(node: ir.Node) -> list[Relation] | Refusal:
    """The joined axis is the parts in order; all other axes are tied."""
    output = node.outputs[0]
    size = rank(output)
    inputs = [value for value in node.inputs if value is not None]
    if size is None or any(rank(value) != size for value in inputs):
        return Refusal("the shapes around this Concat are not known")
    joined = int_attribute(node, "axis", 0) % size
    relations: list[Relation] = []
    lengths = [static_size(value, joined) for value in inputs]
    out_axis = axis_of(output, joined)
    if out_axis is not None and None not in lengths and sum(n for n in lengths if n) == out_axis.size:
        parts = [axis_of(value, joined) or length or 0 for value, length in zip(inputs, lengths, strict=True)]
        relations.append(Concatenate(node, parts, out_axis))
    for dim in range(size):
        target = axis_of(output, dim)
        members = [axis_of(value, dim) for value in inputs]
        if dim != joined and target is not None and all(m is not None and m.size == target.size for m in members):
            tied = [m for m in members if m is not None]
            relations.append(Tie(node, tied, [target], agreed_constants(tied)))
    return relations


@rule("Split")
def relate_split(node: ir.Node) -> list[Relation] | Refusal:
    """Each output is a range of the source along one axis."""
    source = node.inputs[0]
    size = rank(source) if source is not None else None
    if source is None or size is None or any(rank(output) != size for output in node.outputs):
        return Refusal("the shapes around this Split are not known")
    dim = int_attribute(node, "axis", 0) % size
    lengths = [static_size(output, dim) for output in node.outputs]
    relations: list[Relation] = []
    source_axis = axis_of(source, dim)
    if source_axis is not None:
        if any(length is None for length in lengths) or sum(n for n in lengths if n) != source_axis.size:
            return Refusal("the lengths of this Split are not known")
        start = 0
        for output, length in zip(node.outputs, lengths, strict=True):
            assert length is not None
            target = axis_of(output, dim)
            index = np.arange(start, start + length)
            if target is not None:
                relations.append(Select(node, source_axis, target, index, free=False))
            elif output.uses() or output.is_graph_output():
                relations += [Take(node, source_axis, index), _TakenScalar(node, source_axis, start, output)]
            start += length
    for output in node.outputs:
        for other in range(size):
            before, after = axis_of(source, other), axis_of(output, other)
            if other != dim and before is not None and after is not None:
                relations.append(_pass_on(node, before, after))
    return relations


class _TakenScalar(Relation):
    """An output without a static axis, filled by the constant of the one index that it takes."""

    def __init__(self, node: ir.Node, source: Axis, index: int, output: ir.Value) -> None:
        super().__init__(node, [])
        self._source, self._index, self._output = source, index, output

    def forward(self, facts: Facts) -> None:
        known = facts.constants(self._source)
        if known is not None and not axes_of(self._output):
            facts.learn_scalar(self._output, float(known[self._index]))


@fixup("Split")
def fix_split(edit: Edit, node: ir.Node) -> None:
    """Write the new lengths; a part of which nothing is left is no output any more."""
    source = node.inputs[0]
    assert source is not None
    assert source.shape is not None
    dim = int_attribute(node, "axis", 0) % len(source.shape)
    # the axis that was analysed: a Concat in front may be gone by now, and another value be the input
    before = next((r.source for r in edit.relations(node) if isinstance(r, (Select, Take))), None)
    if before is None or not edit.removed(before).any():
        return
    removed, start = edit.removed(before), 0
    parts: list[tuple[ir.Value, int]] = []
    for output in node.outputs:
        length = static_size(output, dim)
        assert length is not None
        left = int((~removed[start : start + length]).sum())
        if left or not length:  # a part that was empty before has its readers
            parts.append((output, left))
        start += length
    for name in ("num_outputs", "split"):
        node.attributes.pop(name, None)
    if len(parts) < len(node.outputs):
        node = _with_outputs(edit, node, [output for output, _ in parts])
    edit.set_input(node, 1, np.array([length for _, length in parts], np.int64))


def _with_outputs(edit: Edit, node: ir.Node, staying: list[ir.Value]) -> ir.Node:
    new = ir.node("Split", list(node.inputs), node.attributes, num_outputs=len(staying), name=node.name)
    edit.graph.insert_before(node, new)
    for old, output in zip(staying, new.outputs, strict=True):
        name = old.name
        old.name = f"{name}_before_split"
        edit.like(output, old, name or "")
        old.replace_all_uses_with(output, replace_graph_outputs=True)
    return new


@rule("Slice")
def relate_slice(node: ir.Node) -> list[Relation] | Refusal:
    """Ranges with a step along some axes, all other axes are tied."""
    source, output = node.inputs[0], node.outputs[0]
    size = rank(source) if source is not None else None
    if source is None or size is None or rank(output) != size:
        return Refusal("the shapes around this Slice are not known")
    starts, ends = constant_ints(node, 1), constant_ints(node, 2)
    axes = constant_ints(node, 3) if operand(node, 3) is not None else None
    steps = constant_ints(node, 4) if operand(node, 4) is not None else None
    if operand(node, 3) is not None and axes is None:
        return Refusal("the axes of this Slice are computed at run time")
    if axes is None:
        start_value = node.inputs[1]
        count = static_size(start_value, 0) if start_value is not None else None
        if count is None:
            return Refusal("the axes of this Slice are not known")
        axes = list(range(count))
    axes = [axis % size for axis in axes]
    relations: list[Relation] = []
    for dim in range(size):
        before, after = axis_of(source, dim), axis_of(output, dim)
        if dim not in axes:
            if before is not None and after is not None:
                relations.append(_pass_on(node, before, after))
            continue
        if before is None or after is None or starts is None or ends is None:
            continue
        if operand(node, 4) is not None and steps is None:
            continue
        position = axes.index(dim)
        step = 1 if steps is None else steps[position]
        index = np.arange(before.size)[slice(*_bounds(starts[position], ends[position], step, before.size))]
        if index.size != after.size:
            continue
        if abs(step) == 1:
            relations.append(Select(node, before, after, index, free=False))
        elif len(axes) == 1:
            # what lies between the taken indices may stay, so the fixup may turn the Slice into a Gather
            relations.append(Select(node, before, after, index, free=True))
    return relations


def _bounds(start: int, end: int, step: int, size: int) -> tuple[int | None, int | None, int]:
    """ONNX bounds as Python bounds: huge ends mean the end of the axis in both."""
    if step > 0:
        return start, end, step
    return start, (None if end < -size else end), step


@fixup("Slice")
def fix_slice(edit: Edit, node: ir.Node) -> None:
    """Move the bounds of every cut axis to where the kept range now lies."""
    cut = [
        r
        for r in edit.relations(node)
        if isinstance(r, Select) and (edit.removed(r.source).any() or edit.removed(r.output).any())
    ]
    if not cut:
        return
    source = node.inputs[0]
    assert source is not None
    assert source.shape is not None
    starts, ends = constant_ints(node, 1), constant_ints(node, 2)
    assert starts is not None
    assert ends is not None
    axes = constant_ints(node, 3) if operand(node, 3) is not None else list(range(len(starts)))
    assert axes is not None
    axes = [axis % len(source.shape) for axis in axes]
    steps = constant_ints(node, 4) if operand(node, 4) is not None else [1] * len(starts)
    assert steps is not None
    for relation in cut:
        place = np.cumsum(~edit.removed(relation.source)) - 1
        index = place[relation.index[edit.kept(relation.output)]]
        position = axes.index(relation.source.dim)
        step = int(index[1] - index[0]) if index.size > 1 else 1
        if (np.diff(index) != step).any():
            node.op_type = "Gather"
            node.attributes["axis"] = ir.AttrInt64("axis", relation.source.dim)
            node.resize_inputs(2)
            edit.set_input(node, 1, index.astype(np.int64))
            return
        starts[position], steps[position] = int(index[0]), step
        end = int(index[-1]) + (1 if step > 0 else -1)
        ends[position] = end if end >= 0 else -(2**31)
    # starts, ends, axes and steps share one integer type, which need not be int64
    integer = np.int64 if node.inputs[1] is None or node.inputs[1].dtype is None else node.inputs[1].dtype.numpy()
    for slot, numbers in enumerate((starts, ends, axes, steps), start=1):
        edit.set_input(node, slot, np.array(numbers, integer))


@rule("Gather")
def relate_gather(node: ir.Node) -> list[Relation] | Refusal:
    """Constant indices select along the axis; the other axes of the source are tied."""
    source, indices, output = node.inputs[0], node.inputs[1], node.outputs[0]
    size = rank(source) if source is not None else None
    index_rank = rank(indices) if indices is not None else None
    if source is None or size is None or index_rank is None or rank(output) != size - 1 + index_rank:
        return Refusal("the shapes around this Gather are not known")
    dim = int_attribute(node, "axis", 0) % size
    relations: list[Relation] = []
    for other in range(size):
        if other == dim:
            continue
        before, after = axis_of(source, other), axis_of(output, other if other < dim else other - 1 + index_rank)
        if before is not None and after is not None:
            relations.append(_pass_on(node, before, after))
    array, before = array_of(indices), axis_of(source, dim)
    if array is None:
        if indices is not None:
            for position in range(index_rank):
                inner, after = axis_of(indices, position), axis_of(output, dim + position)
                if inner is not None and after is not None:
                    relations.append(Tie(node, [inner], [after]))
        return relations
    if before is not None and index_rank == 1 and (after := axis_of(output, dim)) is not None:
        index = as_float64(array).astype(np.int64) % before.size
        relations.append(Select(node, before, after, index, free=True))
        if (own := axis_of(indices, 0)) is not None:
            relations.append(Tie(node, [own], [after]))
    elif before is not None:
        index = as_float64(array).astype(np.int64).ravel() % before.size
        relations.append(Take(node, before, index))
        if index.size == 1:
            relations.append(_TakenScalar(node, before, int(index[0]), output))
    return relations


@fixup("Gather")
def fix_gather(edit: Edit, node: ir.Node) -> None:
    """Renumber constant indices to the places where their sources now lie."""
    for relation in edit.relations(node):
        if isinstance(relation, Select) and (
            edit.removed(relation.source).any() or edit.removed(relation.output).any()
        ):
            place = np.cumsum(~edit.removed(relation.source)) - 1
            index = place[relation.index[edit.kept(relation.output)]]
            old = array_of(node.inputs[1])
            assert old is not None
            edit.set_input(node, 1, index.astype(old.dtype))
        elif isinstance(relation, Take) and edit.removed(relation.source).any():
            place = np.cumsum(~edit.removed(relation.source)) - 1
            old = array_of(node.inputs[1])
            assert old is not None
            edit.set_input(node, 1, place[relation.index].reshape(old.shape).astype(old.dtype))


@rule("Pad")
def relate_pad(node: ir.Node) -> list[Relation] | Refusal:
    """Axes without padding are tied; a padded axis gains fillers at its ends."""
    source, output = node.inputs[0], node.outputs[0]
    size = rank(source) if source is not None else None
    pads = constant_ints(node, 1) if operand(node, 1) is not None else ints_attribute(node, "pads")
    if source is None or size is None or pads is None or rank(output) != size:
        return Refusal("the widths of this Pad are computed at run time")
    axes = list(range(size))
    if operand(node, 3) is not None:
        given = constant_ints(node, 3)
        if given is None:
            return Refusal("the axes of this Pad are computed at run time")
        axes = [axis % size for axis in given]
    constant = string_attribute(node, "mode", "constant") == "constant"
    filler = 0.0
    if operand(node, 2) is not None:
        array = array_of(operand(node, 2))
        filler = float("nan") if array is None else float(as_float64(array).ravel()[0])
    padded = {axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes) if pads[i] or pads[i + len(axes)]}
    relations: list[Relation] = []
    for dim in range(size):
        before, after = axis_of(source, dim), axis_of(output, dim)
        if before is None or after is None:
            continue
        if dim in padded:
            if constant and min(padded[dim]) >= 0:
                index = np.concatenate(
                    [np.full(padded[dim][0], -1), np.arange(before.size), np.full(padded[dim][1], -1)]
                )
                relations.append(Select(node, before, after, index, free=False, filler=filler))
            continue

        def keep(facts: Facts, before: Axis = before) -> Constants | None:
            known = facts.constants(before)
            if known is None or not padded or not constant:
                # reflection and edges repeat what is there
                return known
            return np.where(known == filler, known, np.nan)

        relations.append(Tie(node, [before], [after], keep))
    return relations


@fixup("Pad")
def fix_pad(edit: Edit, node: ir.Node) -> None:
    """Drop the fillers that go."""
    cut = [r for r in edit.relations(node) if isinstance(r, Select) and edit.removed(r.output).any()]
    if not cut:
        return
    source = node.inputs[0]
    assert source is not None
    assert source.shape is not None
    pads = constant_ints(node, 1)
    assert pads is not None
    axes = constant_ints(node, 3) if operand(node, 3) is not None else list(range(len(source.shape)))
    assert axes is not None
    axes = [axis % len(source.shape) for axis in axes]
    for relation in cut:
        fillers = ~edit.removed(relation.output) & (relation.index < 0)
        position = axes.index(relation.output.dim)
        front = pads[position]
        pads[position] = int(fillers[:front].sum())
        pads[position + len(axes)] = int(fillers[front:].sum())
    edit.set_input(node, 1, np.array(pads, np.int64))
