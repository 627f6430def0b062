"""How does each operator pass the rows of samples on from its operands to its result?

A rule gives the rows of the result, None where samples mix, or may. Not all operands are without rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from converters.conditional.values import Dim, constant_of, dims_of

Product = tuple[int, tuple[str, ...]]
"""A number times symbols, sorted."""
_ONE: Product = (1, ())


@dataclass(frozen=True)
class Rows:
    """Axis `axis` counts samples: `outer` times over, and each time sample by sample, with `inner` entries for each.

    A batch is Rows(0). Four heads beside each sample are [4 batch], inner 4; the positions of sequences that are stored
    position by position are [length batch], outer length.
    """

    axis: int
    inner: Product = _ONE
    outer: Product = _ONE

    @property
    def is_one(self) -> bool:
        """One entry per sample."""
        return self.inner == self.outer == _ONE


Kinds = Sequence[Rows | None]
"""For each operand its rows, None where all samples share it."""
Rule = Callable[[ir.Node, Kinds], Rows | None]


def _moved(rows: Rows | None, by: int) -> Rows | None:
    return None if rows is None else replace(rows, axis=rows.axis + by)


def _is_shared_along(value: ir.Value | None, axis: int, rank: int) -> bool:
    """Whether an operand that all samples share is broadcast along an axis of a result of that rank."""
    dims = dims_of(value)
    if dims is None:
        return False
    own = axis - (rank - len(dims))
    return own < 0 or dims[own] == 1


def _elementwise(node: ir.Node, kinds: Kinds) -> Rows | None:
    out = dims_of(node.outputs[0])
    if out is None:
        return None
    found: set[Rows] = set()
    for value, kind in zip(node.inputs, kinds, strict=True):
        dims = dims_of(value)
        if value is not None and dims is None:
            return None
        if kind is not None and dims is not None:
            found.add(replace(kind, axis=kind.axis + len(out) - len(dims)))
    if len(found) != 1:
        return None
    (rows,) = found
    for value, kind in zip(node.inputs, kinds, strict=True):
        if value is not None and kind is None and not _is_shared_along(value, rows.axis, len(out)):
            return None
    return rows


def _data_only(node: ir.Node, kinds: Kinds) -> Rows | None:
    """Operand 0 holds the samples, the others are the same for all."""
    return kinds[0] if not any(kind is not None for kind in kinds[1:]) else None


def _batch_first(node: ir.Node, kinds: Kinds) -> Rows | None:
    rows = _data_only(node, kinds)
    return rows if rows is not None and rows.axis == 0 else None


def _spatial(node: ir.Node, kinds: Kinds) -> Rows | None:
    dims = dims_of(node.inputs[0])
    if dims is None or len(dims) < 3:
        return None
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return None  # the indices that MaxPool gives count from the first sample's first pixel
    return _batch_first(node, kinds)


def _resize(node: ir.Node, kinds: Kinds) -> Rows | None:
    if node.attributes.get("axes") is not None:
        return None
    scales = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if scales is None or not scales.size or float(scales[0]) != 1.0:
        return None
    mode = node.attributes.get("coordinate_transformation_mode")
    if mode is not None and mode.as_string() == "tf_crop_and_resize":
        return None
    return _batch_first(node, kinds)


def _batch_norm(node: ir.Node, kinds: Kinds) -> Rows | None:
    training = node.attributes.get("training_mode")
    return None if training is not None and training.as_int() else _batch_first(node, kinds)


def _gemm(node: ir.Node, kinds: Kinds) -> Rows | None:
    transposed = node.attributes.get("transA")
    if transposed is not None and transposed.as_int():
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not _is_shared_along(bias, 0, 2):
        return None
    return _batch_first(node, kinds)


def _matmul(node: ir.Node, kinds: Kinds) -> Rows | None:
    a, b = dims_of(node.inputs[0]), dims_of(node.inputs[1])
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return None
    rank = max(len(a), len(b))
    left, right = _moved(kinds[0], rank - len(a)), _moved(kinds[1], rank - len(b))
    if left is not None and right is not None:  # a matrix for each sample on both sides
        return left if left == right and left.axis < rank - 2 else None
    rows = left if left is not None else right
    contracted = rank - 1 if left is not None else rank - 2
    if rows is None or rows.axis == contracted:
        return None
    # the other side is one matrix, or as many as there are in front of the samples' axis; not one for each sample
    other = node.inputs[1 if left is not None else 0]
    return rows if rows.axis >= rank - 2 or _is_shared_along(other, rows.axis, rank) else None


def _normalised(node: ir.Node, name: str, default: int) -> int | None:
    """An axis attribute, counted from the front."""
    dims = dims_of(node.inputs[0])
    attribute = node.attributes.get(name)
    axis = default if attribute is None else attribute.as_int()
    return axis % len(dims) if dims else None


def _along(default: int) -> Rule:
    """Operators that work along one axis, given as an attribute, of operand 0."""

    def rule(node: ir.Node, kinds: Kinds) -> Rows | None:
        axis, rows = _normalised(node, "axis", default), _data_only(node, kinds)
        return None if axis is None or rows is None or axis == rows.axis else rows

    return rule


def _from_axis_on(node: ir.Node, kinds: Kinds) -> Rows | None:
    """Normalisation over an axis and all behind it."""
    axis, rows = _normalised(node, "axis", -1), _data_only(node, kinds)
    return rows if axis is not None and rows is not None and rows.axis < axis else None


def _arg(node: ir.Node, kinds: Kinds) -> Rows | None:
    axis, rows = _normalised(node, "axis", 0), _data_only(node, kinds)
    if axis is None or rows is None or axis == rows.axis:
        return None
    return _without_axes(rows, [axis], _keeps(node))


def _keeps(node: ir.Node) -> bool:
    attribute = node.attributes.get("keepdims")
    return attribute is None or bool(attribute.as_int())


def _without_axes(rows: Rows, axes: Sequence[int], keeps: bool = False) -> Rows | None:
    """Rows after other axes were reduced away."""
    if rows.axis in axes:
        return None
    return rows if keeps else replace(rows, axis=rows.axis - sum(axis < rows.axis for axis in set(axes)))


def _concat(node: ir.Node, kinds: Kinds) -> Rows | None:
    axis, rows = _normalised(node, "axis", 1), kinds[0]
    if axis is None or rows is None or axis == rows.axis:
        return None
    return rows if all(kind == rows for kind in kinds) else None


def _listed_axes(node: ir.Node, slot: int) -> list[int] | None:
    """Axes from an attribute or a constant operand, counted from the front of operand 0."""
    dims = dims_of(node.inputs[0])
    attribute = node.attributes.get("axes")
    if dims is None:
        return None
    if attribute is not None:
        return [axis % len(dims) for axis in attribute.as_ints()]
    array = constant_of(node.inputs[slot]) if slot < len(node.inputs) else None
    return None if array is None else [int(axis) % len(dims) for axis in array.ravel()]


def _reduce(node: ir.Node, kinds: Kinds) -> Rows | None:
    axes, rows = _listed_axes(node, 1), _data_only(node, kinds)
    return _without_axes(rows, axes, _keeps(node)) if axes and rows is not None else None


def _squeeze(node: ir.Node, kinds: Kinds) -> Rows | None:
    axes, rows = _listed_axes(node, 1), _data_only(node, kinds)
    return _without_axes(rows, axes) if axes and rows is not None else None


def _unsqueeze(node: ir.Node, kinds: Kinds) -> Rows | None:
    out, rows = dims_of(node.outputs[0]), _data_only(node, kinds)
    attribute = node.attributes.get("axes")
    array = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = list(attribute.as_ints()) if attribute is not None else None if array is None else array.ravel().tolist()
    if out is None or axes is None or rows is None:
        return None
    new = {int(axis) % len(out) for axis in axes}
    old = [axis for axis in range(len(out)) if axis not in new]
    return replace(rows, axis=old[rows.axis]) if rows.axis < len(old) else None


def _transpose(node: ir.Node, kinds: Kinds) -> Rows | None:
    rows, order = kinds[0], node.attributes.get("perm")
    dims = dims_of(node.inputs[0])
    if rows is None or dims is None:
        return None
    axes = list(order.as_ints()) if order is not None else list(reversed(range(len(dims))))
    return replace(rows, axis=axes.index(rows.axis))


def _product(dims: Sequence[Dim | None], times: Product = _ONE) -> Product | None:
    if None in dims:
        return None
    numbers = [times[0], *(dim for dim in dims if isinstance(dim, int))]
    symbols = [*times[1], *(dim for dim in dims if isinstance(dim, str))]
    return int(np.prod(numbers, dtype=np.int64)), tuple(sorted(symbols))


def _quotient(a: Product | None, b: Product | None) -> Product | None:
    """a / b, None where it is not known to be whole."""
    if a is None or b is None or b[0] == 0 or a[0] % b[0]:
        return None
    symbols = list(a[1])
    for symbol in b[1]:
        if symbol not in symbols:
            return None
        symbols.remove(symbol)
    return a[0] // b[0], tuple(symbols)


def _viewed(rows: Rows, before: Sequence[Dim | None], after: Sequence[Dim | None], batch: Dim) -> Rows | None:
    """Rows once [P..., outer batch inner, S...] is seen as [P'..., outer' batch inner', S'...] in row-major order.

    Sample i holds inner S numbers in a row, P outer times; it holds the same ones afterwards if both products stay.
    """
    repeated = _product(before[: rows.axis], rows.outer)
    own = _product(before[rows.axis + 1 :], rows.inner)
    for axis, dim in enumerate(after):
        outer, inner = _quotient(repeated, _product(after[:axis])), _quotient(own, _product(after[axis + 1 :]))
        if outer is None or inner is None:
            continue
        if isinstance(batch, int) and dim != outer[0] * inner[0] * batch:  # symbols in it: not this axis, or unclear
            continue
        return Rows(axis, inner, outer)
    return None


def rule_reshape(node: ir.Node, kinds: Kinds, batch: Dim) -> tuple[Rows, tuple[int, ...]] | None:
    """The rows of a Reshape's result, and its shape operand written anew without the batch size.

    Args:
        batch: the size of the batch, a number or a symbol.
    """
    before, after = dims_of(node.inputs[0]), dims_of(node.outputs[0])
    rows = kinds[0]
    if rows is None or not before or not after or kinds[1] is not None:
        return None
    found = _viewed(rows, before, after, batch)
    if found is None:
        return None
    target: list[int] = []
    for axis, dim in enumerate(after):
        if axis == found.axis:
            target.append(-1)
        elif isinstance(dim, int):
            target.append(dim)
        elif axis < len(before) and axis != rows.axis and before[axis] == dim:
            target.append(0)  # copied
        else:
            return None
    return found, tuple(target)


def _flatten(node: ir.Node, kinds: Kinds) -> Rows | None:
    before, axis = dims_of(node.inputs[0]), _normalised(node, "axis", 1)
    rows = kinds[0]
    if rows is None or rows.axis or not before or not axis:
        return None
    inner = _quotient(_product(before[1:], rows.inner), _product(before[axis:]))
    return None if inner is None else replace(rows, inner=inner)


def _slice(node: ir.Node, kinds: Kinds) -> Rows | None:
    axes, rows = _listed_axes(node, 3), _data_only(node, kinds)
    return rows if axes and rows is not None and rows.axis not in axes else None


def _gather(node: ir.Node, kinds: Kinds) -> Rows | None:
    axis, index = _normalised(node, "axis", 0), dims_of(node.inputs[1])
    data, at = kinds[0], kinds[1]
    if axis is None or index is None:
        return None
    if data is None:  # a table, read at the samples' indices
        return _moved(at, axis)
    if at is not None or axis == data.axis:
        return None
    return data if data.axis < axis else _moved(data, len(index) - 1)


def _gather_elements(node: ir.Node, kinds: Kinds) -> Rows | None:
    axis, rows = _normalised(node, "axis", 0), kinds[0]
    return rows if axis is not None and rows is not None and rows == kinds[1] and axis != rows.axis else None


def _pad(node: ir.Node, kinds: Kinds) -> Rows | None:
    dims, rows = dims_of(node.inputs[0]), _data_only(node, kinds)
    pads = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if dims is None or rows is None or pads is None or len(node.inputs) > 3 or pads.size != 2 * len(dims):
        return None
    return rows if not pads[rows.axis] and not pads[len(dims) + rows.axis] else None


def _expand(node: ir.Node, kinds: Kinds) -> Rows | None:
    target, dims, rows = constant_of(node.inputs[1]), dims_of(node.inputs[0]), kinds[0]
    if target is None or dims is None or rows is None or target.size > len(dims):
        return None
    place = rows.axis - (len(dims) - target.size)
    return rows if place < 0 or int(target[place]) == 1 else None


def _cumulative(node: ir.Node, kinds: Kinds) -> Rows | None:
    dims, axis, rows = dims_of(node.inputs[0]), constant_of(node.inputs[1]), _data_only(node, kinds)
    if dims is None or axis is None or rows is None or int(axis.reshape(-1)[0]) % len(dims) == rows.axis:
        return None
    return rows


def _matrices(node: ir.Node, kinds: Kinds) -> Rows | None:
    """The last two axes are worked on together."""
    dims, rows = dims_of(node.inputs[0]), _data_only(node, kinds)
    return rows if dims is not None and rows is not None and rows.axis < len(dims) - 2 else None


_ELEMENTWISE = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil Celu Clip
    Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN
    LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Sigmoid
    Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor
"""
_SPATIAL = """
    AveragePool Conv ConvTranspose DepthToSpace GlobalAveragePool GlobalLpPool GlobalMaxPool InstanceNormalization
    GroupNormalization LRN LpPool MaxPool SpaceToDepth
"""
_REDUCTIONS = """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
"""
RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_SPATIAL.split(), _spatial),
    **dict.fromkeys(_REDUCTIONS.split(), _reduce),
    **dict.fromkeys(("Softmax", "LogSoftmax", "TopK"), _along(-1)),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _from_axis_on),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "CumSum": _cumulative,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Pad": _pad,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _along(0),
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Trilu": _matrices,
    "Unsqueeze": _unsqueeze,
}
"""Reshape is apart (`rule_reshape`): its operand is rewritten."""
