"""Which Gathers of a flattened tensor only give it a shape again? torch's as_strided, as the exporter spells it.

    Gather(Reshape(x, [-1]), index), where index[i0, i1, ...] counts 0, 1, 2, ... in row-major order

is a Reshape of x. The index is a sum of constants and of Range(0, n) times a stride, so what it holds is known
although n is a dimension that is known only at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.axes import array_of, is_constant, rank
from converters.compaction.dimensions import Dim, Monomial, product
from converters.compaction.rules.common import constant_ints
from converters.compaction.shapes import add_constant, entries_of

Contents = dict[ir.Value, list[Dim]]


@dataclass(frozen=True)
class _Index:
    """An integer tensor constants[i0, i1, ...] + stride * i_dim, of a rank that is known.

    Attributes:
        constants: its entries where i_dim = 0; shape 1 along `dim`.
        dim: the dimension that a Range counts, None where everything is constant.
        count: how long that dimension is.
    """

    constants: NDArray[np.int64]
    dim: int | None = None
    count: Dim = 1
    stride: int = 0


def recognise_strided_views(graph: ir.Graph, contents: Contents) -> None:
    """Replace every Gather that renumbers nothing by a Reshape."""
    for node in list(graph):
        if node.op_type != "Gather" or node.domain not in ("", "ai.onnx") or node.outputs[0].is_graph_output():
            continue
        axis = node.attributes.get("axis")
        flat = node.inputs[0]
        if (axis is not None and axis.as_int() != 0) or flat is None or rank(flat) != 1 or is_constant(flat):
            continue
        reshape = flat.producer()
        if reshape is None or reshape.op_type != "Reshape" or (source := reshape.inputs[0]) is None:
            continue
        index = _index(node.inputs[1], contents)
        if index is None or source.shape is None or not _counts_up_to(index, list(source.shape)):
            continue
        view = ir.node(
            "Reshape",
            [source, add_constant(graph, f"{node.outputs[0].name}_view", np.array([-1, *index.constants.shape[1:]]))],
            name=f"{node.name}_view",
        )
        result, output = view.outputs[0], node.outputs[0]
        result.name, result.type = f"{output.name}_view", output.type
        result.shape = ir.Shape([index.count, *index.constants.shape[1:]])
        graph.insert_before(node, view)
        output.replace_all_uses_with(result)


def _counts_up_to(index: _Index, source: Sequence[Dim]) -> bool:
    """Whether the index counts 0, 1, 2, ... through all elements of the source."""
    if index.dim != 0 or index.stride != index.constants.size:
        return False
    if not np.array_equal(index.constants.ravel(), np.arange(index.constants.size)):
        return False
    count, total = Monomial.of(index.count), product(source)
    return count is not None and total is not None and total == count * Monomial(index.constants.size)


def _index(value: ir.Value | None, contents: Contents) -> _Index | None:
    """The value as an index, None if it is made in any other way."""
    array = array_of(value)
    if array is not None:
        return _Index(array.astype(np.int64)) if array.dtype.kind in "iu" else None
    node = None if value is None else value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Range":
        return _range(node, contents)
    first = _index(node.inputs[0], contents)
    if first is None:
        return None
    if node.op_type == "Unsqueeze":
        return _unsqueezed(first, constant_ints(node, 1) if len(node.inputs) > 1 else None)
    if node.op_type not in ("Add", "Mul"):
        return None
    second = _index(node.inputs[1], contents)
    if second is None:
        return None
    return _sum(first, second) if node.op_type == "Add" else _multiple(first, second)


def _range(node: ir.Node, contents: Contents) -> _Index | None:
    start, limit, step = (entries_of(value, contents) for value in node.inputs)
    if start != [0] or step != [1] or limit is None or len(limit) != 1:
        return None
    return _Index(np.zeros(1, np.int64), 0, limit[0], 1)


def _unsqueezed(index: _Index, axes: Sequence[int] | None) -> _Index | None:
    if axes is None:
        return None
    size = index.constants.ndim + len(axes)
    new = {axis % size for axis in axes}
    old = [dim for dim in range(size) if dim not in new]
    return _Index(
        np.expand_dims(index.constants, tuple(sorted(new))),
        None if index.dim is None else old[index.dim],
        index.count,
        index.stride,
    )


def _sum(left: _Index, right: _Index) -> _Index | None:
    size = max(left.constants.ndim, right.constants.ndim)
    left, right = (_unsqueezed_in_front(index, size) for index in (left, right))
    if left.dim is None:
        left, right = right, left
    if right.dim is not None or (left.dim is not None and right.constants.shape[left.dim] != 1):
        return None
    return _Index(left.constants + right.constants, left.dim, left.count, left.stride)


def _unsqueezed_in_front(index: _Index, size: int) -> _Index:
    more = size - index.constants.ndim
    dim = None if index.dim is None else index.dim + more
    return _Index(index.constants.reshape([1] * more + list(index.constants.shape)), dim, index.count, index.stride)


def _multiple(left: _Index, right: _Index) -> _Index | None:
    if left.dim is None and left.constants.size == 1:
        left, right = right, left
    if right.dim is not None or right.constants.size != 1 or right.constants.ndim > left.constants.ndim:
        return None
    factor = int(right.constants.ravel()[0])
    return _Index(left.constants * factor, left.dim, left.count, left.stride * factor)
