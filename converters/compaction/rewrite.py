"""Carry out a frozen decision: fix operands and attributes, slice initializers, drop dead nodes.

Facts describe the graph before any change and go stale with the first one, so every fixup reads the
decision (`Edit`), never the state that an earlier fixup left behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.analysis import Analysis
from converters.compaction.axes import Axis, Facts, Mask, Permission, Twins, array_of, axes_of, distinct_slices
from converters.compaction.branches import cut_branches, insert_selections
from converters.compaction.names import register_initializer
from converters.compaction.quantised_weights import KEPT
from converters.compaction.registry import FIXUPS, operator_key
from converters.compaction.relations import Contract, Relation
from converters.compaction.selection import Selection


class Edit:
    """The decision, as fixups see it, and the few changes that they may make."""

    def __init__(
        self,
        graph: ir.Graph,
        analysis: Analysis,
        permission: Permission,
        representatives: dict[Contract, int],
        selections: Sequence[Selection] = (),
        maps: Mapping[Relation, NDArray[np.generic]] | None = None,
    ) -> None:
        self.graph = graph
        self.selections = tuple(selections)
        self.maps: Mapping[Relation, NDArray[np.generic]] = {} if maps is None else maps
        self.facts: Facts = analysis.facts
        self.representatives = representatives
        self._analysis = analysis
        self._permission = permission
        self._mentioned = frozenset(permission.axes)
        self._masks: dict[Axis, Mask] = {}
        self._final: set[ir.Value] = set()
        self._counter = 0
        self._gathered: dict[tuple[ir.Value, int, bytes], ir.Value] = {}

    @property
    def analysis(self) -> Analysis:
        """The frozen analysis."""
        return self._analysis

    @property
    def permission(self) -> Permission:
        """The frozen permissions."""
        return self._permission

    def relations(self, node: ir.Node) -> Sequence[Relation]:
        """The relations that the node's rule stated; none for a node that the rewriting added."""
        return self._analysis.of_node.get(node, ())

    def removed(self, axis: Axis) -> Mask:
        """Shape [axis.size]; True where the index goes."""
        if axis in self._masks:
            return self._masks[axis]
        if axis not in self._mentioned:
            return np.zeros(axis.size, bool)
        return self._permission.removable(axis)

    def kept(self, axis: Axis) -> NDArray[np.int64]:
        """The indices that stay, in order."""
        return np.flatnonzero(~self.removed(axis))

    def new_size(self, value: ir.Value, dim: int) -> int | None:
        """Size of a dimension after the change, None where it is dynamic."""
        assert value.shape is not None
        size = value.shape[dim]
        if not isinstance(size, int):
            return None
        return int(self.kept(Axis(value, dim)).size) if size > 1 else size

    def is_cut(self, value: ir.Value | None) -> bool:
        """Whether any axis of the value loses an index."""
        return any(self.removed(axis).any() for axis in axes_of(value))

    def constants_to_fold(self, relation: Contract) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Removed indices of a contraction that add something, and their constants."""
        index = relation.constants_to_fold(self.facts, self._permission)
        constants = self.facts.constants(relation.data)
        return index, np.zeros(0) if constants is None else constants[index]

    def twins_to_fold(self, relation: Contract) -> tuple[NDArray[np.int64], int, Twins] | None:
        """Removed twins of a contraction, the twin that takes over their weights, and all twins of the axis."""
        index = relation.twins_to_fold(self.facts, self._permission)
        twins = self.facts.twins(relation.data)
        if index.size == 0 or twins is None:
            return None
        return index, self.representatives[relation], twins

    def add_initializer(
        self, base: str, array: NDArray[np.generic], masks: Sequence[Mask | None] | None = None
    ) -> ir.Value:
        """A new initializer named after `base`.

        Args:
            masks: per dimension the indices to remove, where the array still has its full size; without
                it the array is final.
        """
        name = f"{base}_compact{self._counter}"
        self._counter += 1
        tensor = ir.Tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        register_initializer(self.graph, value)
        if masks is None:
            self._final.add(value)
        else:
            for dim, mask in enumerate(masks):
                if mask is not None and array.shape[dim] > 1:
                    self._masks[Axis(value, dim)] = mask
        return value

    def add_map(
        self, base: str, array: NDArray[np.generic], reader: ir.Node, dims: Sequence[int] | None = None
    ) -> ir.Value:
        """A final constant [1, C, *space] in front of `reader`, stored without its repeated rows and columns.

        Args:
            dims: the dimensions of space; all from the third on where they are left out.

        Gathers of constants write the repetition back; runtimes evaluate them once, when they load the model.
        """
        dims = range(2, array.ndim) if dims is None else dims
        gathers: list[tuple[int, NDArray[np.int64]]] = []
        stored = array
        for dim in dims:
            first, index = distinct_slices(stored, dim)
            if first.size < stored.shape[dim] // 2:
                stored = np.take(stored, first, axis=dim)
                gathers.append((dim, index))
        value = self.add_initializer(base, np.ascontiguousarray(stored))
        for dim, index in reversed(gathers):
            where = self.add_initializer(base, index)
            gather = ir.node("Gather", [value, where], {"axis": dim}, name=f"{where.name}_repeat")
            result = gather.outputs[0]
            result.name, result.type = f"{where.name}_repeated", value.type
            assert value.shape is not None
            result.shape = ir.Shape([index.size if d == dim else size for d, size in enumerate(value.shape)])
            self.graph.insert_before(reader, gather)
            value = result
        return value

    def set_input(
        self, node: ir.Node, slot: int, array: NDArray[np.generic], masks: Sequence[Mask | None] | None = None
    ) -> None:
        """Replace (or add) an operand by a new initializer; `masks` as in `add_initializer`."""
        if slot >= len(node.inputs):
            node.resize_inputs(slot + 1)
        base = node.outputs[0].name or node.op_type
        node.replace_input_with(slot, self.add_initializer(base, array, masks))

    def replace_shape_concat(
        self,
        node: ir.Node,
        slot: int,
        pieces: Sequence[ir.Value],
        sizes: Sequence[int | None],
        length: int | None = None,
    ) -> None:
        """Replace a shape operand, a Concat of `pieces`, by one in which known sizes are new numbers.

        Args:
            length: how many entries the pieces have together; None: one each.
        """
        parts = [
            piece if size is None else self.add_initializer(f"{piece.name}", np.array([size], np.int64))
            for piece, size in zip(pieces, sizes, strict=True)
        ]
        concat = ir.node("Concat", parts, {"axis": 0}, name=f"{node.name}_shape")
        output = concat.outputs[0]
        output.name = f"{node.outputs[0].name}_compact_shape"
        output.shape, output.type = ir.Shape([length or len(parts)]), ir.TensorType(ir.DataType.INT64)
        self.graph.insert_before(node, concat)
        node.replace_input_with(slot, output)

    def insert_after(self, node: ir.Node, op_type: str, others: Sequence[ir.Value]) -> ir.Node:
        """Insert `op_type(output, *others)` behind the node; all readers then read the new node."""
        output = node.outputs[0]
        name = output.name
        output.name = f"{name}_before_{op_type.lower()}"
        added = ir.node(op_type, [output, *others], name=f"{node.name}_{op_type.lower()}")
        result = added.outputs[0]
        result.name, result.shape, result.type = name, output.shape, output.type
        output.replace_all_uses_with(result, replace_graph_outputs=True)
        added.replace_input_with(0, output)
        for axis in axes_of(output):
            self._masks[Axis(result, axis.dim)] = self.removed(axis)
        self.graph.insert_after(node, added)
        return added

    def insert_before(
        self, node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], shape: ir.Shape, **attributes: ir.Attr
    ) -> ir.Value:
        """Add an operator in front of the node; its output has the node's type and, at once, its final shape."""
        base = node.outputs[0]
        label = f"{base.name}_{op_type.lower()}{self._counter}"
        self._counter += 1
        added = ir.node(op_type, inputs, attributes=attributes, name=label)
        result = added.outputs[0]
        result.name, result.shape, result.type = label, ir.Shape(list(shape)), base.type
        self.graph.insert_before(node, added)
        return result

    def gather(self, node: ir.Node, slot: int, dim: int, index: NDArray[np.int64]) -> None:
        """Let the node read just these indices of an operand, counted in the width that the operand will have.

        Fixups run in graph order, so one that comes later may share the Gather.
        """
        value = node.inputs[slot]
        assert value is not None
        assert value.shape is not None
        key = (value, dim, index.tobytes())
        if key not in self._gathered:
            where = self.add_initializer(f"{value.name}_taken", index)
            shape = ir.Shape([index.size if d == dim else size for d, size in enumerate(value.shape)])
            self._gathered[key] = self.insert_before(
                node, "Gather", [value, where], shape, axis=ir.AttrInt64("axis", dim)
            )
        node.replace_input_with(slot, self._gathered[key])

    def replace_output(self, node: ir.Node, value: ir.Value) -> None:
        """All readers of the node's first output read `value` instead, which takes over its name and masks."""
        output = node.outputs[0]
        name = output.name
        output.name = f"{name}_replaced"
        value.name, value.shape, value.type = name, output.shape, output.type
        for axis in axes_of(output):
            self._masks[Axis(value, axis.dim)] = self.removed(axis)
        output.replace_all_uses_with(value, replace_graph_outputs=True)

    def opset(self) -> int:
        """Version of the standard operators that the model uses."""
        return self.graph.opset_imports.get("", 0)

    def like(self, value: ir.Value, original: ir.Value, name: str) -> None:
        """Give a new value the type and shape of `original`, and let it be cut like it."""
        value.name, value.type = name, original.type
        value.shape = original.shape if original.shape is None else ir.Shape(list(original.shape))
        for axis in axes_of(original):
            self._masks[Axis(value, axis.dim)] = self.removed(axis)

    def cut(self, axis: Axis, mask: Mask) -> None:
        """Cut an axis of a value that the rewriting added."""
        self._masks[axis] = mask

    def is_final(self, value: ir.Value) -> bool:
        """Whether a fixup made this initializer at its final size."""
        return value in self._final


def rewrite(edit: Edit) -> None:
    """Cut off dead branches, run all fixups, then slice every initializer and update every shape in one pass."""
    graph = edit.graph
    cut_branches(edit)
    remove_dead_nodes(graph)
    for node in list(graph):
        fix = FIXUPS.get(operator_key(node))
        if fix is not None:
            fix(edit, node)
    remove_dead_nodes(graph)
    insert_selections(edit)
    slice_initializers(edit)
    for node in graph:
        for output in node.outputs:
            _update_shape(edit, output)


def slice_initializers(edit: Edit) -> None:
    """Cut every initializer that the decision cuts and no fixup has made anew."""
    for value in list(edit.graph.initializers.values()):
        if not edit.is_final(value) and edit.is_cut(value):
            _slice_initializer(edit, value)


def _slice_initializer(edit: Edit, value: ir.Value) -> None:
    array = array_of(value)
    assert array is not None
    for axis in axes_of(value):
        if edit.removed(axis).any():
            array = np.take(array, edit.kept(axis), axis=axis.dim)
            value.meta.setdefault(KEPT, {})[axis.dim] = edit.kept(axis)
    assert value.name is not None
    value.const_value = ir.Tensor(np.ascontiguousarray(array), name=value.name, dtype=value.dtype)
    value.shape = ir.Shape(array.shape)


def _update_shape(edit: Edit, value: ir.Value) -> None:
    cut = {axis.dim: int(edit.kept(axis).size) for axis in axes_of(value) if edit.removed(axis).any()}
    if cut:
        assert value.shape is not None
        if 0 in cut.values() and value.uses():
            raise AssertionError(f"'{value.name}' lost all its indices but is still read; the plan is wrong")
        value.shape = ir.Shape([cut.get(dim, size) for dim, size in enumerate(value.shape)])


def remove_dead_nodes(graph: ir.Graph) -> None:
    """Drop nodes that no output depends on and initializers that nobody reads."""
    for node in reversed(list(graph)):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]
