"""Rules for operators that rearrange axes without touching numbers: Reshape, Flatten, Transpose, Squeeze, Expand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import Axis, Constants, Facts, array_of, axes_of, rank, static_size
from converters.compaction.dimensions import Dim, Monomial, product
from converters.compaction.registry import Refusal, fixup, rule
from converters.compaction.relations import Product, Relation, Same, Tie, Unread
from converters.compaction.rewrite import Edit
from converters.compaction.rules.common import axis_of, constant_ints, ints_attribute, operand

Group = tuple[list[int], list[int]]


def matching_groups(before: Sequence[Dim], after: Sequence[Dim]) -> list[Group] | None:
    """Split two shapes of the same elements into the smallest runs that span the same elements.

    Returns:
        Pairs of (dimensions before, dimensions after), None if the shapes cannot be matched. One
        anonymous stretch in the middle is allowed: what lies left and right of it still matches.
    """
    head = _match_from_left(before, after)
    if sum(len(g[0]) for g in head) == len(before) and sum(len(g[1]) for g in head) == len(after):
        return head
    done_before, done_after = sum(len(g[0]) for g in head), sum(len(g[1]) for g in head)
    rest_before, rest_after = list(before[done_before:]), list(after[done_after:])
    tail = _match_from_left(rest_before[::-1], rest_after[::-1])
    mirrored: list[Group] = [
        ([len(before) - 1 - d for d in reversed(g[0])], [len(after) - 1 - d for d in reversed(g[1])])
        for g in reversed(tail)
    ]
    used_before = {d for g in (*head, *mirrored) for d in g[0]}
    used_after = {d for g in (*head, *mirrored) for d in g[1]}
    middle = (
        [d for d in range(len(before)) if d not in used_before],
        [d for d in range(len(after)) if d not in used_after],
    )
    return [*head, *([middle] if middle[0] or middle[1] else []), *mirrored]


def _match_from_left(before: Sequence[Dim], after: Sequence[Dim]) -> list[Group]:
    groups: list[Group] = []
    i = j = 0
    while i < len(before) and j < len(after):
        run: Group = ([i], [j])
        left, right = Monomial.of(before[i]), Monomial.of(after[j])
        while left is not None and right is not None and left != right:
            if _smaller(left, right) and run[0][-1] + 1 < len(before):
                run[0].append(run[0][-1] + 1)
                left = product(before[d] for d in run[0])
            elif not _smaller(left, right) and run[1][-1] + 1 < len(after):
                run[1].append(run[1][-1] + 1)
                right = product(after[d] for d in run[1])
            else:
                return groups
        if left is None or right is None:
            return groups
        groups.append(run)
        i, j = run[0][-1] + 1, run[1][-1] + 1
    # dimensions of length 1 may be left over on one side
    while i < len(before) and before[i] == 1:
        groups.append(([i], []))
        i += 1
    while j < len(after) and after[j] == 1:
        groups.append(([], [j]))
        j += 1
    return groups


def _smaller(left: Monomial, right: Monomial) -> bool:
    """Which side a run grows on: the one that lacks a symbol, else the one with the smaller factor."""
    if left.symbols != right.symbols:
        return not (left.symbols - right.symbols)
    return left.factor < right.factor


def relate_regrouping(node: ir.Node, source: ir.Value, output: ir.Value) -> list[Relation] | Refusal:
    """Relations of a row-major regrouping of dimensions, from the two shapes alone."""
    if source.shape is None or output.shape is None:
        return Refusal(f"the shapes around this {node.op_type} are not known")
    groups = matching_groups(list(source.shape), list(output.shape))
    if groups is None:
        return Refusal(f"the shapes around this {node.op_type} cannot be matched")
    relations: list[Relation] = []
    for before, after in groups:
        static = all(static_size(source, d) is not None for d in before) and all(
            static_size(output, d) is not None for d in after
        )
        if not static:
            continue  # a dynamic dimension is merged or split: its static partners stay whole
        sources = [Axis(source, d) for d in before if static_size(source, d) != 1]
        outputs = [Axis(output, d) for d in after if static_size(output, d) != 1]
        if np.prod([a.size for a in sources]) != np.prod([a.size for a in outputs]):
            continue
        if len(sources) == 1 and len(outputs) == 1:
            relations.append(_pass_on(node, sources[0], outputs[0]))
        elif sources and outputs:
            relations.append(Product(node, sources, outputs))
    return relations


def _pass_on(node: ir.Node, source: Axis, target: Axis) -> Same:
    return Same(node, source, target)


class _PassScalar(Relation):
    """What fills the whole source fills the whole output."""

    def __init__(self, node: ir.Node, source: ir.Value, output: ir.Value) -> None:
        super().__init__(node, [])
        self._source, self._output = source, output

    def forward(self, facts: Facts) -> None:
        if not axes_of(self._output):
            facts.learn_scalar(self._output, facts.scalar(self._source))


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def relate_reshape(node: ir.Node) -> list[Relation] | Refusal:
    """The elements keep their row-major order; dimensions are split, merged, added or dropped."""
    source, output = node.inputs[0], node.outputs[0]
    if source is None:
        return Refusal(f"a {node.op_type} without an input")
    relations = relate_regrouping(node, source, output)
    if isinstance(relations, Refusal):
        return relations
    if node.op_type == "Reshape" and array_of(node.inputs[1]) is None and _pieces(node) is None:
        # the shape is computed at run time and would ask for the old sizes
        return Refusal("the target shape of this Reshape is computed at run time")
    relations.append(_PassScalar(node, source, output))
    return relations


@fixup("Reshape")
def fix_reshape(edit: Edit, node: ir.Node) -> None:
    """Write the new widths into the target shape."""
    output = node.outputs[0]
    if not edit.is_cut(output) and not edit.is_cut(node.inputs[0]):
        return
    assert output.shape is not None
    sizes = [edit.new_size(output, dim) for dim in range(len(output.shape))]
    pieces = _pieces(node)
    if pieces is not None:
        edit.replace_shape_concat(node, 1, pieces, sizes)
        return
    target = array_of(node.inputs[1])
    assert target is not None
    new = [int(old) if size is None else size for old, size in zip(target, sizes, strict=True)]
    edit.set_input(node, 1, np.array(new, np.int64))


def _pieces(node: ir.Node) -> list[ir.Value] | None:
    """The target shape as one vector of length 1 per dimension, None if it is not such a Concat."""
    target, output = node.inputs[1], node.outputs[0]
    producer = target.producer() if target is not None else None
    if producer is None or producer.op_type != "Concat" or output.shape is None:
        return None
    pieces = [piece for piece in producer.inputs if piece is not None and static_size(piece, 0) == 1]
    return pieces if len(pieces) == len(output.shape) == len(producer.inputs) else None


@rule("Transpose")
def relate_transpose(node: ir.Node) -> list[Relation] | Refusal:
    """Output dimension k is source dimension perm[k]."""
    source, output = node.inputs[0], node.outputs[0]
    size = rank(source) if source is not None else None
    if source is None or size is None or rank(output) != size:
        return Refusal("the shapes around this Transpose are not known")
    permutation = ints_attribute(node, "perm") or list(reversed(range(size)))
    relations: list[Relation] = [_PassScalar(node, source, output)]
    for dim, origin in enumerate(permutation):
        before, after = axis_of(source, origin), axis_of(output, dim)
        if before is not None and after is not None:
            relations.append(_pass_on(node, before, after))
    return relations


@rule("Expand")
def relate_expand(node: ir.Node) -> list[Relation] | Refusal:
    """Source and target shape broadcast; an axis that is repeated stays whole."""
    source, output = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or output.shape is None:
        return Refusal("the shapes around this Expand are not known")
    if array_of(node.inputs[1]) is None and _pieces(node) is None:
        return Refusal("the target shape of this Expand is computed at run time")
    shift = len(output.shape) - len(source.shape)
    relations: list[Relation] = [_PassScalar(node, source, output)]
    for axis in axes_of(output):
        before = axis_of(source, axis.dim - shift) if axis.dim >= shift else None
        if before is not None and before.size == axis.size:
            relations.append(_pass_on(node, before, axis))
        elif before is None and (axis.dim < shift or static_size(source, axis.dim - shift) == 1):
            # a repeated axis: any of the equal copies may go
            relations.append(_Repeated(node, source, axis))
    return relations


class _Repeated(Tie):
    """An output axis made of equal copies of the source: it is as long as its readers need it."""

    def __init__(self, node: ir.Node, source: ir.Value, axis: Axis) -> None:
        def transfer(facts: Facts) -> Constants:
            return np.full(axis.size, facts.scalar(source))

        super().__init__(node, [], [axis], transfer)


@fixup("Expand")
def fix_expand(edit: Edit, node: ir.Node) -> None:
    """Write the new widths into the target shape."""
    output = node.outputs[0]
    if not edit.is_cut(output):
        return
    pieces = _pieces(node)
    assert output.shape is not None
    if pieces is not None:
        sizes = [
            None if (old := array_of(piece)) is not None and int(old.ravel()[0]) == 1 else edit.new_size(output, dim)
            for dim, piece in enumerate(pieces)
        ]
        edit.replace_shape_concat(node, 1, pieces, sizes)
        return
    target = array_of(node.inputs[1])
    assert target is not None
    shift = len(output.shape) - target.size
    new = []
    for position, old in enumerate(target):
        size = edit.new_size(output, position + shift)
        new.append(int(old) if size is None or int(old) == 1 else size)
    edit.set_input(node, 1, np.array(new, np.int64))


@rule("Shape")
def relate_shape(node: ir.Node) -> list[Relation] | Refusal:
    """A Shape reads no elements; the dimensions that its readers take must keep their length."""
    source = node.inputs[0]
    if source is None or source.shape is None:
        return Refusal("a Shape of a value of unknown rank")
    asked = _asked(node, len(source.shape))
    return [Unread(node, axis) for axis in axes_of(source) if axis.dim not in asked]


def _asked(node: ir.Node, size: int) -> set[int]:
    """The dimensions that somebody reads, by a range of the Shape or by a Gather or Slice of constant places."""
    start, end = node.attributes.get("start"), node.attributes.get("end")
    dims = list(range(size))[slice(start.as_int() if start else None, end.as_int() if end else None)]
    output = node.outputs[0]
    if output.is_graph_output():
        return set(dims)
    asked: set[int] = set()
    for use in output.uses():
        reader, bounds = use.node, [constant_ints(use.node, slot) for slot in (1, 2)]
        if reader.domain not in ("", "ai.onnx") or use.idx != 0 or bounds[0] is None:
            return set(dims)
        if reader.op_type == "Gather":
            asked |= {dims[index] for index in bounds[0] if -len(dims) <= index < len(dims)}
        elif reader.op_type == "Slice" and bounds[1] is not None and len(bounds[0]) == 1 and operand(reader, 4) is None:
            asked |= set(dims[bounds[0][0] : bounds[1][0]])
        else:
            return set(dims)
    return asked
