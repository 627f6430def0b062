"""Which indices of a torch module's own parameters can go, and what do the parameters hold afterwards?

The engine decides on the graph that torch.onnx writes of the module unoptimised, where every parameter is an
initializer under its own name. A module has fewer ways out than a graph: its forward stays as it is, so nothing may be
added or left out, and a correction must fit into a weight or a bias. What needs more (the statistics of a LayerNorm, a
bias map, a Gather, a branch without channels) is pinned, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.analysis import Analysis, relate
from converters.compaction.axes import Axis, Facts, Liveness, Mask, Permission, array_of, as_float64, axes_of
from converters.compaction.choices import choose
from converters.compaction.finiteness import need_finite_operands
from converters.compaction.maps import Maps
from converters.compaction.normalise import normalise
from converters.compaction.plan import Kept, make_plan
from converters.compaction.registry import FIXUPS, FUNCTIONS
from converters.compaction.relations import Contract, Grouped, Pin, Relation, Tie
from converters.compaction.rewrite import Edit, slice_initializers
from converters.compaction.rules.common import int_attribute
from l0runtime.gates.resizing import is_resizable

if TYPE_CHECKING:
    from torch.nn import Module

Array = NDArray[np.generic]
ParameterAxis = tuple[str, int]
"""A parameter's or buffer's qualified name, and the dimension."""

_CONTRACTIONS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# their corrections are sizes and positions, which a forward reads off its tensors, or fails to when it is tried
_POSITIONS = ("Reshape", "Split", "Slice", "Gather", "Pad", "Resize", "Expand", "Attention")
# what takes a part of a parameter may take another one for other inputs (a table of positions, a longer sequence)
_PARTS = ("Slice", "Gather", "GatherElements", "GatherND", "Split")


@dataclass(frozen=True)
class ModulePlan:
    """What the parameters of a module become.

    Args:
        tensors: new contents by qualified name; a bias that did not exist is added.
        kept: for each name that is cut, the indices that stay per dimension.
        groups: new number of groups of a grouped convolution, by the layer's name.
        edited: names in `tensors` that hold other numbers than a slice of what they held.
    """

    tensors: Mapping[str, Array]
    kept: Mapping[str, Mapping[int, NDArray[np.int64]]]
    groups: Mapping[str, int]
    edited: frozenset[str]


@dataclass(frozen=True)
class _Use:
    """A parameter where a node reads it, perhaps transposed."""

    name: str
    node: ir.Node
    slot: int
    permutation: tuple[int, ...] | None

    @property
    def value(self) -> ir.Value:
        found = self.node.inputs[self.slot]
        assert found is not None
        return found

    def dim_of(self, axis: int) -> int:
        """The parameter's dimension that an axis of the operand is."""
        return axis if self.permutation is None else self.permutation[axis]

    def restore(self, array: Array) -> Array:
        """The operand's contents in the parameter's own orientation."""
        return array if self.permutation is None else np.transpose(array, np.argsort(self.permutation))


class ModuleSolution:
    """What the engine lets go of a module's parameters.

    Args:
        model: its unoptimised graph; consumed.
        module: to whose layers the parameters belong.
        keep: further indices that must stay, per parameter axis.
        in_training: the parameters go on being trained: biases cannot be added, and a grouped convolution's columns,
            which go group by group, stay.
    """

    def __init__(
        self,
        model: ir.Model,
        module: Module,
        keep: Mapping[ParameterAxis, Mask] | None = None,
        *,
        in_training: bool = False,
    ) -> None:
        self._module = module
        names = {name for name, _ in [*module.named_parameters(), *module.named_buffers()]}
        normalise(model, names)
        self._graph = model.graph
        self._uses = list(_uses_of(self._graph, names))
        self._before = {use.name: use.restore(_contents(use.value)) for use in self._uses}
        self._axes: dict[ParameterAxis, list[Axis]] = {}
        for use in self._uses:
            for axis in axes_of(use.value):
                self._axes.setdefault((use.name, use.dim_of(axis.dim)), []).append(axis)
        self.analysis = self._analyse(in_training)
        self._permission, self._representatives = self._solve(keep or {})

    @property
    def removable(self) -> dict[ParameterAxis, Mask]:
        """Per parameter axis that loses an index: which ones go."""
        masks = {key: self._permission.removable(axes[0]) for key, axes in self._axes.items()}
        return {key: mask for key, mask in masks.items() if mask.any()}

    def groups(self) -> list[frozenset[ParameterAxis]]:
        """Parameter axes that are cut together, in the order of the graph."""
        parent: dict[Axis, Axis] = {}

        def root(axis: Axis) -> Axis:
            while (up := parent.setdefault(axis, axis)) is not axis:
                axis = up
            return axis

        for relation in self.analysis.relations:
            cut = [axis for axis in relation.axes if self._permission.removable(axis).any()]
            for axis in cut[1:]:
                parent[root(axis)] = root(cut[0])
        found: dict[Axis, set[ParameterAxis]] = {}
        for key in self.removable:
            found.setdefault(root(self._axes[key][0]), set()).add(key)
        return [frozenset(group) for group in found.values()]

    def kept(self) -> tuple[Kept, ...]:
        """Dead indices that stay, and why, most expensive first."""
        return make_plan(self.analysis, self._permission, self._representatives).kept

    def constant_inputs(self) -> dict[str, NDArray[np.float64]]:
        """For each BatchNorm's running mean the constants that fill the channels in front of it, NaN where none do."""
        found: dict[str, NDArray[np.float64]] = {}
        for use in self._uses:
            if use.node.op_type == "BatchNormalization" and use.slot == 3 and use.node.inputs[0] is not None:
                constants = self.analysis.facts.constants(Axis(use.node.inputs[0], 1))
                if constants is not None:
                    found[use.name] = constants
        return found

    def carry_out(self) -> ModulePlan:
        """The parameters' new contents; to be called once."""
        edit = Edit(self._graph, self.analysis, self._permission, self._representatives)
        for node in list(self._graph):
            if node.op_type in _CONTRACTIONS and node.domain in ("", "ai.onnx"):
                FIXUPS[node.op_type](edit, node)
        slice_initializers(edit)
        tensors: dict[str, Array] = {}
        groups: dict[str, int] = {}
        for use in self._uses:
            array = use.restore(_contents(use.value))
            if array is not self._before[use.name] and not np.array_equal(array, self._before[use.name]):
                tensors.setdefault(use.name, array)
            if use.slot == 1 and use.node.op_type in ("Conv", "ConvTranspose"):
                self._note_groups(use, groups)
        for use in self._uses:
            if use.slot == 1 and use.node.op_type in _CONTRACTIONS:
                self._note_bias(use, tensors)
        kept: dict[str, dict[int, NDArray[np.int64]]] = {}
        for (name, dim), mask in self.removable.items():
            kept.setdefault(name, {})[dim] = np.flatnonzero(~mask)
        edited = {name for name, array in tensors.items() if not self._is_slice(name, array, kept.get(name, {}))}
        return ModulePlan(tensors, kept, groups, frozenset(edited))

    def _is_slice(self, name: str, array: Array, kept: Mapping[int, NDArray[np.int64]]) -> bool:
        before = self._before.get(name)
        if before is None:
            return False
        for dim, index in kept.items():
            before = np.take(before, index, axis=dim)
        return np.array_equal(before, array)

    # --- the pieces -------------------------------------------------------------------------------------------------

    def _analyse(self, in_training: bool) -> Analysis:
        facts, live = Facts(), Liveness()
        relations: list[Relation] = []
        of_node: dict[ir.Node, tuple[Relation, ...]] = {}
        for value in self._graph.inputs:
            relations += [Pin(None, axis, "it is an input of the model") for axis in axes_of(value)]
        for node in self._graph:
            stated = relate(node)
            for relation in stated:
                relation.forward(facts)
                if isinstance(relation, Contract):
                    relation.folds_twins = False
                    if in_training and not self._has_bias(node):
                        relation.fold = "zero" if relation.fold == "bias" else relation.fold
                elif isinstance(relation, Grouped) and in_training:
                    relation.constants_fold = relation.constants_fold and self._has_bias(node)
            stated += _without_place(node, stated)
            stated += self._parts_of_parameters(node, stated)
            if in_training:
                stated += _whole_columns(node, stated)
            of_node[node] = tuple(stated)
            relations += stated
        for value in self._graph.outputs:
            relations += [Pin(None, axis, "it is an output of the model") for axis in axes_of(value)]
        relations += self._owners()
        for relation in reversed(relations):
            relation.require(live, facts)
        return Analysis(tuple(relations), facts, Maps(facts, FUNCTIONS), live, (), of_node)

    def _owners(self) -> Iterator[Relation]:
        """Parameters of layers with sizes of their own stay whole; all uses of a parameter are cut alike."""
        for use in self._uses:
            owner = self._module.get_submodule(use.name.rpartition(".")[0])
            reason = None
            if not is_resizable(owner):
                reason = f"{use.name}: {type(owner).__name__} keeps the widths that it was made with"
            elif use.value.dtype is None or not use.value.dtype.is_floating_point():
                reason = f"{use.name}: whole numbers say where something lies"
            if reason is not None:
                yield from (Pin(None, axis, reason) for axis in axes_of(use.value))
        for axes in self._axes.values():
            if len(axes) > 1:
                yield Tie(None, axes, [])

    def _parts_of_parameters(self, node: ir.Node, stated: Iterable[Relation]) -> list[Relation]:
        if node.op_type not in _PARTS or not any(use.node is node and use.slot == 0 for use in self._uses):
            return []
        picked = [axis for relation in stated if not isinstance(relation, Tie) for axis in relation.axes]
        return [Pin(node, axis, "the forward takes a part of a parameter") for axis in dict.fromkeys(picked)]

    def _has_bias(self, node: ir.Node) -> bool:
        weight = next((use for use in self._uses if use.node is node and use.slot == 1), None)
        if weight is None:
            return False
        owner = self._module.get_submodule(weight.name.rpartition(".")[0])
        return getattr(owner, "bias", None) is not None

    def _solve(self, keep: Mapping[ParameterAxis, Mask]) -> tuple[Permission, dict[Contract, int]]:
        permission = Permission(self.analysis.relations)
        for key, mask in keep.items():
            for axis in self._axes.get(key, ()):
                permission.withhold(axis, mask)
        while True:
            permission.solve()
            representatives = choose(self.analysis, permission)
            while _fill_empty_axes(permission):
                representatives = choose(self.analysis, permission)
            if not need_finite_operands(self.analysis, permission):
                return permission, representatives

    def _note_groups(self, use: _Use, groups: dict[str, int]) -> None:
        layer = use.name.rpartition(".")[0]
        count = int_attribute(use.node, "group", 1)
        if count != getattr(self._module.get_submodule(layer), "groups", count):
            groups[layer] = count

    def _note_bias(self, use: _Use, tensors: dict[str, Array]) -> None:
        """What removed constants add where there is no bias, or behind a MatMul whose bias is another node's."""
        layer = use.name.rpartition(".")[0]
        name = f"{layer}.bias" if layer else "bias"
        slot, node = 2, use.node
        if node.op_type != "MatMul":
            bias = node.inputs[slot] if slot < len(node.inputs) else None
            is_known = any(other.node is node and other.slot == slot for other in self._uses)
            if bias is not None and not is_known and as_float64(_contents(bias)).any():
                tensors[name] = _contents(bias)
            return
        for reader in [reader.node for reader in node.outputs[0].uses()]:
            if reader not in self.analysis.of_node and reader.op_type == "Add" and reader.inputs[1] is not None:
                added = _contents(reader.inputs[1])
                old = tensors.get(name, self._before.get(name))
                tensors[name] = added if old is None else (as_float64(old) + as_float64(added)).astype(added.dtype)


def _fill_empty_axes(permission: Permission) -> bool:
    """Keep one index where none would stay: a forward has no way to leave a branch out."""
    empty = [axis for axis in permission.axes if permission.removable(axis).all()]
    for axis in empty:
        if permission.removable(axis).all():
            permission.withhold(axis, np.arange(axis.size) == 0)
            permission.resume()
    return bool(empty)


def _contents(value: ir.Value) -> Array:
    array = array_of(value)
    assert array is not None
    return array


def _uses_of(graph: ir.Graph, names: set[str]) -> Iterator[_Use]:
    origin: dict[str, tuple[str, tuple[int, ...] | None]] = {name: (name, None) for name in names}
    for initializer in graph.initializers.values():
        source = initializer.meta.get("transpose_of")
        if source in names:
            origin[str(initializer.name)] = (str(source), tuple(initializer.meta["permutation"]))
    for node in graph:
        for slot, value in enumerate(node.inputs):
            if value is None or array_of(value) is None:
                continue
            found = origin.get(str(value.name)) or origin.get(str(value.meta.get("clone_of")))
            if found is not None:
                yield _Use(found[0], node, slot, found[1])


def _without_place(node: ir.Node, stated: Iterable[Relation]) -> list[Relation]:
    """Pins on what only an operator's own correction could make right, which no parameter of the module can hold."""
    if node.op_type not in FIXUPS or node.op_type in (*_CONTRACTIONS, *_POSITIONS):
        return []
    coupled = [axis for relation in stated if not isinstance(relation, Tie) for axis in relation.axes]
    return [Pin(node, axis, f"{node.op_type} would need a correction of its own") for axis in dict.fromkeys(coupled)]


def _whole_columns(node: ir.Node, stated: Iterable[Relation]) -> list[Relation]:
    grouped = [relation for relation in stated if isinstance(relation, Grouped)]
    return [
        Pin(node, axis, "its groups would lose different columns")
        for relation in grouped
        if relation.data.size != relation.groups
        for axis in relation.axes
    ]


def named(keys: Iterable[ParameterAxis]) -> str:
    """Parameter axes for people, at most three."""
    listed = sorted({name for name, _ in keys})
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more


def values_in(model: ir.Model, tensors: Mapping[str, Any]) -> ir.Model:
    """The same graph with other parameters, by name; the original stays as it is."""
    twin = model.clone()
    for name, value in twin.graph.initializers.items():
        if name in tensors:
            array = np.ascontiguousarray(tensors[name])
            value.const_value = ir.Tensor(array, name=name)
    return twin
