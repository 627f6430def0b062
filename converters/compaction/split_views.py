"""Which part of a fused projection does each reader take? The split moves in front of the views.

    qkv [B, N, 3 * H * D] -> Reshape [B, N, 3, H, D] -> Transpose [3, B, H, N, D] -> Slice 0, Slice 1, Slice 2

Query, key and value share the axes of heads and features, so what is closed in the values alone (one head of
one part) is no index of any axis. Split first, and each part has axes of its own:

    qkv -> Split -> q, k, v [B, N, H * D] -> Reshape [B, N, H, D] -> Transpose [B, H, N, D]

which are no more copies of the data than before. Where the parts lie inside each head ([H, 3 * D]), the rows of
the projection are put in the order of the parts beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.axes import array_of, is_constant, static_size
from converters.compaction.dimensions import Dim, Monomial
from converters.compaction.reordering import reorder_rows
from converters.compaction.shapes import add_constant
from converters.compaction.view_chains import Atom, Layout, chain_from, compose, emit, in_source_order

# a Reshape, a Transpose and a Reshape, in place of the reader's Slice and of its share of the chain
_NODES_PER_PART = 3


class _Part(NamedTuple):
    """Indices low .. high - 1 of one dimension, as `output` of a reader; `drops` the dimension (a Gather of one)."""

    low: int
    high: int
    output: ir.Value
    drops: bool


def split_before_views(graph: ir.Graph) -> None:
    """Move every division of a chain's result in front of the chain, where it cuts a source dimension into ranges."""
    for node in list(graph):
        chain = chain_from(node)
        if chain:
            _split_before(graph, chain)


def _split_before(graph: ir.Graph, chain: list[ir.Node]) -> None:
    source, result = chain[0].inputs[0], chain[-1].outputs[0]
    if source is None or source.shape is None or is_constant(source) or result.is_graph_output():
        return
    readers = [use.node for use in result.uses() if use.node.op_type != "Shape"]
    if not readers or any(use.idx != 0 for use in result.uses()):
        return
    dims = {_divided_dim(reader) for reader in readers}
    dim = dims.pop()
    if dim is None or dims:
        return
    taken = [_parts(reader, dim) for reader in readers]
    parts = [part for found in taken for part in found]
    layout = compose(chain)
    if layout is None or not all(taken) or any(atom.dim is None for atoms in layout for atom in atoms):
        return
    head = layout[dim]
    own = in_source_order([atom for atoms in layout for atom in atoms if head and atom.dim == head[0].dim])
    # the divided dimension is one piece of a larger source dimension
    if len(head) != 1 or len(own) < 2 or not all(atom.size.is_static for atom in own):
        return
    bounds = sorted({(part.low, part.high) for part in parts})
    if any(after[0] < before[1] for before, after in pairwise(bounds)):
        return
    cuts = sorted({0, head[0].size.factor, *(end for pair in bounds for end in pair)})
    order = [_indices(own, head[0], low, high) for low, high in pairwise(cuts)]
    if not reorder_rows(graph, source, head[0].dim or 0, np.concatenate(order)):
        return
    ranges = _split(graph, chain[0], source, head[0].dim or 0, [index.size for index in order])
    for part in parts:
        piece = ranges[cuts.index(part.low)]
        emit(graph, chain[0], piece, part.output, _layout_of(layout, dim, part), limit=_NODES_PER_PART)


def _indices(own: list[Atom], divided: Atom, low: int, high: int) -> NDArray[np.int64]:
    """Where the indices low .. high - 1 of one piece lie in the source dimension, in order."""
    sizes = [atom.size.factor for atom in own]
    grid = np.arange(int(np.prod(sizes))).reshape(sizes)
    return grid.take(range(low, high), axis=own.index(divided)).ravel()


def _divided_dim(node: ir.Node) -> int | None:
    """The one dimension that the node divides into ranges, None if it does anything else."""
    source = node.inputs[0]
    if node.domain not in ("", "ai.onnx") or source is None or source.shape is None:
        return None
    if node.op_type in ("Split", "Gather"):
        axis = node.attributes.get("axis")
        dim = 0 if axis is None else axis.as_int()
    elif node.op_type == "Slice":
        axes, steps = _ints(node, 3), _ints(node, 4) if len(node.inputs) > 4 else [1]
        if axes is None or len(axes) != 1 or steps != [1]:
            return None
        dim = axes[0]
    else:
        return None
    return dim % len(source.shape)


def _parts(node: ir.Node, dim: int) -> list[_Part]:
    """The ranges that a reader takes; none where they are not known."""
    source, output = node.inputs[0], node.outputs[0]
    size = None if source is None else static_size(source, dim)
    if size is None or any(value.shape is None or value.is_graph_output() for value in node.outputs):
        return []
    if node.op_type == "Split":
        lengths = [static_size(value, dim) for value in node.outputs]
        if any(length is None for length in lengths):
            return []
        ends = np.cumsum([length or 0 for length in lengths])
        return [
            _Part(int(end) - (length or 0), int(end), value, drops=False)
            for end, length, value in zip(ends, lengths, node.outputs, strict=True)
            if length
        ]
    if node.op_type == "Gather":
        index = array_of(node.inputs[1])
        if index is None or index.size != 1 or index.ndim > 1:
            return []
        low = int(index.ravel()[0]) % size
        return [_Part(low, low + 1, output, drops=index.ndim == 0)]
    starts, ends_given = _ints(node, 1), _ints(node, 2)
    if starts is None or ends_given is None:
        return []
    low, high, _ = slice(starts[0], ends_given[0]).indices(size)
    return [_Part(low, high, output, drops=False)] if low < high else []


def _split(graph: ir.Graph, before: ir.Node, source: ir.Value, dim: int, lengths: list[int]) -> Sequence[ir.Value]:
    """A Split of the source into ranges of these lengths."""
    assert source.shape is not None
    name = f"{source.name}_parts"
    operand = add_constant(graph, f"{name}_lengths", np.array(lengths, np.int64))
    node = ir.node("Split", [source, operand], {"axis": dim}, num_outputs=len(lengths), name=name)
    for number, (output, length) in enumerate(zip(node.outputs, lengths, strict=True)):
        shape: list[Dim] = list(source.shape)
        shape[dim] = length
        output.name, output.type, output.shape = f"{name}_{number}", source.type, ir.Shape(shape)
    graph.insert_before(before, node)
    return node.outputs


def _layout_of(layout: Layout, dim: int, part: _Part) -> Layout:
    """The layout of one part: the divided piece is as long as the part."""
    length, old = part.high - part.low, layout[dim][0]
    piece = [] if length == 1 else [Atom(Monomial(length), old.dim, old.place)]
    changed = [piece if position == dim else atoms for position, atoms in enumerate(layout)]
    return changed[:dim] + changed[dim + 1 :] if part.drops else changed


def _ints(node: ir.Node, slot: int) -> list[int] | None:
    array = array_of(node.inputs[slot]) if slot < len(node.inputs) else None
    return None if array is None else [int(number) for number in array.ravel()]
