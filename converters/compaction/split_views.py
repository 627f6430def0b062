"""Which part of a fused projection does each reader take? The split moves in front of the views.

    qkv [B, N, 3 * H * D] -> Reshape [B, N, 3, H, D] -> Transpose [3, B, H, N, D] -> Slice 0, Slice 1, Slice 2

Query, key and value share the axes of heads and features, so what is closed in the values alone (one head of
one part) is no index of any axis. Split first, and each part has axes of its own:

    qkv -> Split -> q, k, v [B, N, H * D] -> Reshape [B, N, H, D] -> Transpose [B, H, N, D]

which are no more copies of the data than before.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import array_of, is_constant, static_size
from converters.compaction.dimensions import Dim, Monomial, product
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
    parts = [part for reader in readers for part in _parts(reader, dim)]
    layout = compose(chain)
    if layout is None or not parts or any(atom.dim is None for atoms in layout for atom in atoms):
        return
    head = layout[dim]
    own = in_source_order([atom for atoms in layout for atom in atoms if head and atom.dim == head[0].dim])
    # the divided dimension is the outermost piece of a larger source dimension
    if not head or head != own[: len(head)] or len(head) == len(own) or not all(a.size.is_static for a in own):
        return
    bounds = sorted({(part.low, part.high) for part in parts})
    if any(after[0] < before[1] for before, after in pairwise(bounds)):
        return
    ranges = _split(graph, chain[0], source, own, len(head), bounds)
    for part in parts:
        emit(
            graph,
            chain[0],
            ranges[part.low, part.high],
            part.output,
            _layout_of(layout, dim, own, len(head), part),
            limit=_NODES_PER_PART,
        )


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
    """The ranges that a reader takes; none where they are not known, so that the reader stays as it is."""
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


def _split(
    graph: ir.Graph, before: ir.Node, source: ir.Value, own: list[Atom], head: int, bounds: list[tuple[int, int]]
) -> dict[tuple[int, int], ir.Value]:
    """A Split of the source into these ranges (in units of the outermost piece) and what lies between them."""
    dim = own[0].dim
    assert dim is not None
    assert source.shape is not None
    total, inner = product(a.size.to_dim() for a in own[:head]), product(a.size.to_dim() for a in own[head:])
    assert total is not None
    assert inner is not None
    cuts = sorted({0, total.factor, *(end for pair in bounds for end in pair)})
    lengths = [(high - low) * inner.factor for low, high in pairwise(cuts)]
    name = f"{source.name}_parts"
    operand = add_constant(graph, f"{name}_lengths", np.array(lengths, np.int64))
    node = ir.node("Split", [source, operand], {"axis": dim}, num_outputs=len(lengths), name=name)
    for number, (output, length) in enumerate(zip(node.outputs, lengths, strict=True)):
        shape: list[Dim] = list(source.shape)
        shape[dim] = length
        output.name, output.type, output.shape = f"{name}_{number}", source.type, ir.Shape(shape)
    graph.insert_before(before, node)
    return {(low, high): node.outputs[number] for number, (low, high) in enumerate(pairwise(cuts))}


def _layout_of(layout: Layout, dim: int, own: list[Atom], head: int, part: _Part) -> Layout:
    """The layout of one part: the outermost piece is as long as the part."""
    length = part.high - part.low
    piece = [] if length == 1 else [Atom(Monomial(length), own[0].dim, own[0].place)]
    changed = [piece if position == dim else atoms for position, atoms in enumerate(layout)]
    return changed[:dim] + changed[dim + 1 :] if part.drops else changed


def _ints(node: ir.Node, slot: int) -> list[int] | None:
    array = array_of(node.inputs[slot]) if slot < len(node.inputs) else None
    return None if array is None else [int(number) for number in array.ravel()]
