"""Normal form of chains of Reshape, Transpose, Expand, Squeeze and Unsqueeze.

A chain is composed on *atoms*, the pieces that its reshapes split the source's dimensions into, and written
back as at most: a Gather per dimension (a permutation or repetition inside one dimension: channel shuffle,
repeated key-value heads), a pure split, one Transpose, a pure merge. What came between is gone, above all
reshapes that merged a static dimension with a dynamic one and so kept it from being cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.axes import is_constant
from converters.compaction.dimensions import Dim, Monomial, product
from converters.compaction.shapes import add_constant, reshape_target

VIEWS = frozenset({"Reshape", "Transpose", "Expand", "Squeeze", "Unsqueeze", "Flatten"})


@dataclass(frozen=True, eq=False)
class Atom:
    """A piece of source dimension `dim`; `dim` is None for a repetition that Expand adds.

    Attributes:
        place: the splits that led to it, left = 0 and right = 1, so that sorting pieces of one dimension by
            place gives their order in the source.
    """

    size: Monomial
    dim: int | None
    place: tuple[int, ...] = ()


Layout = list[list[Atom]]


def canonicalise_view_chains(graph: ir.Graph) -> None:
    """Rewrite every chain of two or more views whose normal form has no more nodes than it."""
    for node in list(graph):
        chain = chain_from(node)
        if len(chain) < 2:
            continue
        source, result = chain[0].inputs[0], chain[-1].outputs[0]
        if source is None or is_constant(source) or result.is_graph_output():
            continue
        layout = compose(chain)
        if layout is not None:
            emit(graph, chain[-1], source, result, layout, limit=len(chain))


def _is_view(node: ir.Node) -> bool:
    return node.op_type in VIEWS and node.domain in ("", "ai.onnx")


def _real_readers(value: ir.Value) -> list[ir.Node]:
    # a Shape reads no elements; if nobody else needs the intermediate value it goes with the chain
    return [use.node for use in value.uses() if use.node.op_type != "Shape"]


def _continues(node: ir.Node) -> bool:
    """Whether the node belongs to a chain that starts earlier."""
    source = node.inputs[0]
    producer = source.producer() if source is not None else None
    return producer is not None and _is_view(producer) and _passes(source)


def _passes(value: ir.Value | None) -> bool:
    return value is not None and len(_real_readers(value)) == 1 and not value.is_graph_output()


def chain_from(node: ir.Node) -> list[ir.Node]:
    """The longest chain of views that starts at this node; empty where it is no view or continues one."""
    if not _is_view(node) or _continues(node):
        return []
    chain = [node]
    while _passes(chain[-1].outputs[0]):
        reader = _real_readers(chain[-1].outputs[0])[0]
        if not _is_view(reader) or reader.inputs[0] is not chain[-1].outputs[0]:
            break
        chain.append(reader)
    return chain


def compose(chain: list[ir.Node]) -> Layout | None:
    """For each dimension of the chain's result the atoms of its source that make it up, None if that is unknown."""
    source = chain[0].inputs[0]
    assert source is not None
    if source.shape is None:
        return None
    layout: Layout = []
    for position, dim in enumerate(source.shape):
        size = Monomial.of(dim)
        if size is None:
            return None
        layout.append([] if dim == 1 else [Atom(size, position)])
    for node in chain:
        output = node.outputs[0]
        if output.shape is None:
            return None
        step: Layout | None
        if node.op_type == "Transpose":
            permutation = node.attributes.get("perm")
            order = list(permutation.as_ints()) if permutation else list(reversed(range(len(layout))))
            step = [layout[dim] for dim in order]
        elif node.op_type == "Expand":
            step = _expand(layout, list(output.shape))
        else:
            step = _regroup(layout, list(output.shape))
        if step is None:
            return None
        layout = step
    return layout


def _expand(layout: Layout, shape: list[Dim]) -> Layout | None:
    padded: Layout = [[] for _ in range(len(shape) - len(layout))] + layout
    result: Layout = []
    for atoms, dim in zip(padded, shape, strict=True):
        if atoms or dim == 1:
            result.append(atoms)
        elif isinstance(dim, int):
            result.append([Atom(Monomial(dim), None)])
        else:
            return None  # repeated a number of times that is known only at run time
    return result


def _regroup(layout: Layout, shape: list[Dim]) -> Layout | None:
    """Distribute the atoms, in order, over the new dimensions; integers are split where they must be."""
    waiting = [atom for atoms in layout for atom in atoms]
    result: Layout = []
    for dim in shape:
        need = Monomial.of(dim)
        if need is None:
            return None
        taken: list[Atom] = []
        while need != Monomial():
            if not waiting:
                return None
            atom = waiting.pop(0)
            rest = need.divide(atom.size)
            if rest is not None:
                taken.append(atom)
                need = rest
                continue
            surplus = atom.size.divide(need)
            if surplus is None:
                return None
            taken.append(Atom(need, atom.dim, (*atom.place, 0)))
            waiting.insert(0, Atom(surplus, atom.dim, (*atom.place, 1)))
            need = Monomial()
        result.append(taken)
    return None if waiting else result


def in_source_order(atoms: list[Atom]) -> list[Atom]:
    """The atoms of the source, without repetitions, as they lie in it."""
    return sorted((atom for atom in atoms if atom.dim is not None), key=lambda atom: (atom.dim or 0, atom.place))


def emit(graph: ir.Graph, before: ir.Node, source: ir.Value, result: ir.Value, layout: Layout, *, limit: int) -> None:
    """Replace `result` by its normal form, made from `source` in front of a node, with at most `limit` nodes."""
    assert source.shape is not None
    assert result.shape is not None
    writer = _Writer(graph, before, source, f"{result.name}_view")
    layout = _gather_inside_dims(writer, layout, list(source.shape))
    repeated = [atoms for atoms in layout if any(atom.dim is None for atom in atoms)]
    if any(len(_real(atoms)) != 1 or not all(a.size.is_static for a in atoms) for atoms in repeated):
        return writer.abandon()
    # atoms of each source dimension in source order: what the split must produce
    order = [atom for atoms in layout for atom in _real(atoms)]
    assert writer.value.shape is not None
    dims = list(writer.value.shape)
    per_dim: list[list[Atom]] = [[] for _ in dims]
    for atom in in_source_order(order):
        assert atom.dim is not None
        per_dim[atom.dim].append(atom)
    split = [atom for atoms in per_dim for atom in atoms]
    if [product(a.size.to_dim() for a in atoms) for atoms in per_dim] != [Monomial.of(d) for d in dims]:
        return writer.abandon()
    permutation = [split.index(atom) for atom in order]
    moves = permutation != sorted(permutation)
    if moves or repeated:
        keeps_ones = len(split) == len(dims) == len(result.shape)
        if not keeps_ones and not writer.reshape([atom.size.to_dim() for atom in split]):
            return writer.abandon()
        if moves:
            writer.transpose(permutation)
        for atoms in repeated:
            writer.gather(order.index(_real(atoms)[0]), _index(_real(atoms), atoms))
    if not writer.reshape(list(result.shape)):
        return writer.abandon()
    writer.finish(limit, result)
    return None


def _gather_inside_dims(writer: _Writer, layout: Layout, source: list[Dim]) -> Layout:
    """Turn permutations and repetitions inside one static dimension into a Gather along it."""
    atoms_of: dict[int, list[Atom]] = {}
    for atom in in_source_order([atom for atoms in layout for atom in atoms]):
        assert atom.dim is not None
        atoms_of.setdefault(atom.dim, []).append(atom)
    result: Layout = []
    for atoms in layout:
        dims = {atom.dim for atom in atoms if atom.dim is not None}
        if len(dims) != 1 or not all(atom.size.is_static for atom in atoms):
            result.append(atoms)
            continue
        (dim,) = dims
        own = atoms_of[dim]
        if {id(a) for a in own} != {id(a) for a in _real(atoms)} or atoms == own:
            result.append(atoms)
            continue
        index = _index(own, atoms)
        writer.gather(dim, index)
        result.append([Atom(Monomial(index.size), dim)])
    return result


def _real(atoms: list[Atom]) -> list[Atom]:
    return [atom for atom in atoms if atom.dim is not None]


def _index(own: list[Atom], atoms: list[Atom]) -> NDArray[np.int64]:
    """Which element of a dimension made of `own` stands where in the one made of `atoms`."""
    grid = np.arange(int(np.prod([a.size.factor for a in own]))).reshape([a.size.factor for a in own])
    grid = grid.transpose([own.index(atom) for atom in _real(atoms)])
    view = grid.reshape([1 if atom.dim is None else atom.size.factor for atom in atoms])
    return np.broadcast_to(view, [atom.size.factor for atom in atoms]).ravel()


class _Writer:
    """Collects the nodes of a normal form; nothing reaches the graph before `finish`."""

    def __init__(self, graph: ir.Graph, before: ir.Node, source: ir.Value, base: str) -> None:
        self._graph, self._before, self._base = graph, before, base
        self._nodes: list[ir.Node] = []
        self._constants: list[ir.Value] = []
        self.value = source

    def _add(
        self, op_type: str, others: list[ir.Value], attributes: dict[str, int | list[int]], shape: list[Dim]
    ) -> None:
        node = ir.node(op_type, [self.value, *others], attributes, name=f"{self._base}_{len(self._nodes)}")
        output = node.outputs[0]
        output.name, output.type, output.shape = f"{self._base}_{len(self._nodes)}", self.value.type, ir.Shape(shape)
        self._nodes.append(node)
        self.value = output

    def _constant(self, array: NDArray[np.int64]) -> ir.Value:
        value = add_constant(self._graph, f"{self._base}_operand", array)
        self._constants.append(value)
        return value

    def gather(self, dim: int, index: NDArray[np.int64]) -> None:
        """Select `index` along `dim`."""
        assert self.value.shape is not None
        shape: list[Dim] = list(self.value.shape)
        shape[dim] = index.size
        self._add("Gather", [self._constant(index.astype(np.int64))], {"axis": dim}, shape)

    def reshape(self, shape: list[Dim]) -> bool:
        """Reshape if the shape differs; False if the target cannot be written as a constant."""
        assert self.value.shape is not None
        old = list(self.value.shape)
        if [Monomial.of(d) for d in old] == [Monomial.of(d) for d in shape]:
            return True
        target = reshape_target(old, shape)
        if target is None:
            return self._unsqueeze(old, shape)
        self._add("Reshape", [self._constant(np.array(target, np.int64))], {}, shape)
        return True

    def _unsqueeze(self, old: list[Dim], shape: list[Dim]) -> bool:
        """Dimensions of length 1 can be added where several others are known only at run time."""
        if [Monomial.of(d) for d in old] != [Monomial.of(d) for d in shape if d != 1]:
            return False
        added = [position for position, dim in enumerate(shape) if dim == 1]
        self._add("Unsqueeze", [self._constant(np.array(added, np.int64))], {}, shape)
        return True

    def transpose(self, permutation: list[int]) -> None:
        """Permute all dimensions."""
        assert self.value.shape is not None
        self._add("Transpose", [], {"perm": permutation}, [self.value.shape[dim] for dim in permutation])

    def abandon(self) -> None:
        """Drop the operands that were made; the chain stays as it is."""
        for node in self._nodes:  # a node outside the graph that still reads a value would keep its branch alive
            for slot in range(len(node.inputs)):
                node.replace_input_with(slot, None)
        self._nodes.clear()
        for value in self._constants:
            assert value.name is not None
            del self._graph.initializers[value.name]

    def finish(self, limit: int, result: ir.Value) -> None:
        """Put the nodes in place of what makes the result, if there are no more of them."""
        if len(self._nodes) > limit:
            return self.abandon()
        for node in self._nodes:
            self._graph.insert_before(self._before, node)
        result.replace_all_uses_with(self.value)
        return None
