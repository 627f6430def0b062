"""Does a block treat every sample by itself, so that it may run on some of them alone?

A value holds rows when axis 0 is the batch, k rows for each sample and sample by sample; everything else must be the
same for all samples. An operator passes rows on when row i of its result depends on row i of its operands alone. What
no rule describes mixes samples, as far as anyone knows: the block then runs on the whole batch or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from converters.conditional.values import Dim, constant_of, dims_of

Rows = tuple[int, tuple[str, ...]]
"""Rows per sample: a number times the product of symbols, sorted."""
ONE: Rows = (1, ())


class Mixing(Exception):  # noqa: N818 - a verdict, caught below
    """Why an operator may not run on some samples alone."""


@dataclass(frozen=True)
class PerSample:
    """A block that may run on some samples alone.

    Args:
        taken: values from outside whose rows of the chosen samples are taken.
        shapes: new constant shape operand for each Reshape (where 0 copies a size), without the number of rows.
        rows: rows per sample of each result in the block, None where all samples share it.
    """

    taken: tuple[ir.Value, ...]
    shapes: Mapping[ir.Node, tuple[int, ...]]
    rows: Mapping[ir.Value, Rows | None]


def check_rows(nodes: tuple[ir.Node, ...], result: ir.Value, rows: Dim) -> PerSample | str:
    """Whether `result` [rows, ...] depends row by row on what the nodes read; a string says what mixes samples."""
    state = _State(nodes, rows)
    try:
        for node in nodes:
            kind = state.kind_of_node(node)
            for output in node.outputs:
                state.kinds[output] = kind
        if state.kinds.get(result) != ONE:
            raise Mixing(f"its result {result.name} does not hold one row per sample")
    except Mixing as reason:
        return str(reason)
    return PerSample(tuple(state.taken), state.shapes, state.kinds)


class _State:
    def __init__(self, nodes: tuple[ir.Node, ...], rows: Dim) -> None:
        self.rows = rows
        self.inside = {output for node in nodes for output in node.outputs}
        self.kinds: dict[ir.Value, Rows | None] = {}  # None: the same for all samples
        self.taken: dict[ir.Value, None] = {}
        self.shapes: dict[ir.Node, tuple[int, ...]] = {}

    def kind(self, value: ir.Value | None) -> Rows | None:
        if value is None:
            return None
        if value in self.kinds:
            return self.kinds[value]
        if constant_of(value) is not None:
            return None
        dims = dims_of(value)
        if dims is None:
            raise Mixing(f"the shape of {value.name} is unknown")
        if dims and dims[0] == self.rows:
            self.taken[value] = None
            return ONE
        return None

    def kind_of_node(self, node: ir.Node) -> Rows | None:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise Mixing(f"{_named(node)} holds a subgraph")
        kinds = [self.kind(value) for value in node.inputs]
        if all(kind is None for kind in kinds):
            return None
        rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is None:
            raise Mixing(f"no rule says that {_named(node)} keeps samples apart")
        found = rule(self, node, kinds)
        if found is None:
            raise Mixing(f"{_named(node)} mixes samples, or may")
        return found


Rule = Callable[[_State, ir.Node, list[Rows | None]], Rows | None]


def _named(node: ir.Node) -> str:
    return f"{node.op_type} {node.name or node.outputs[0].name}"


def _shared(value: ir.Value | None, rank: int) -> bool:
    """Whether an operand that all samples share is broadcast along axis 0 of a result of that rank."""
    dims = dims_of(value)
    return dims is not None and (len(dims) < rank or (len(dims) == rank and dims[0] == 1))


def _elementwise(state: _State, node: ir.Node, kinds: list[Rows | None]) -> Rows | None:
    out = dims_of(node.outputs[0])
    if out is None:
        return None
    found: Rows | None = None
    for value, kind in zip(node.inputs, kinds, strict=True):
        if value is None:
            continue
        dims = dims_of(value)
        if kind is None:
            if not _shared(value, len(out)):
                return None
        elif dims is None or len(dims) != len(out) or (found is not None and found != kind):
            return None
        else:
            found = kind
    return found


def _data_only(state: _State, node: ir.Node, kinds: list[Rows | None]) -> Rows | None:
    """Operand 0 holds the samples along axis 0, the others are weights."""
    return kinds[0] if not any(kind is not None for kind in kinds[1:]) else None


def _spatial(state: _State, node: ir.Node, kinds: list[Rows | None]) -> Rows | None:
    dims = dims_of(node.inputs[0])
    return _data_only(state, node, kinds) if dims is not None and len(dims) >= 3 else None


def _resize(state: _State, node: ir.Node, kinds: list[Rows | None]) -> Rows | None:
    if node.attributes.get("axes") is not None:
        return None
    scales = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if scales is None or not scales.size or float(scales[0]) != 1.0:
        return None
    mode = node.attributes.get("coordinate_transformation_mode")
    if mode is not None and mode.as_string() == "tf_crop_and_resize":
        return None
    return _data_only(state, node, kinds)


def _batch_norm(state: _State, node: ir.Node, kinds: list[Rows | None]) -> Rows | None:
    training = node.attributes.get("training_mode")
    return None if training is not None and training.as_int() else _data_only(state, node, kinds)


def _gemm(state: _State, node: ir.Node, kinds: list[Rows | None]) -> Rows | None:
    transposed = node.attributes.get("transA")
    if transposed is not None and transposed.as_int():
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if kinds[1] is not None or (len(kinds) > 2 and kinds[2] is not None) or (bias is not None and not _shared(bias, 2)):
        return None
    return kinds[0]


def _matmul(state: _State, node: ir.Node, kinds: list[Rows | None]) -> Rows | None:
    a, b = dims_of(node.inputs[0]), dims_of(node.inputs[1])
    if a is None or b is None:
        return None
    if kinds[1] is None:
        return (
            kinds[0]
            if len(a) >= 2 and (len(b) == 2 or (len(b) <= len(a) and _shared(node.inputs[1], len(a))))
            else None
        )
    if len(b) < 3:
        return None
    if kinds[0] is None:
        return kinds[1] if _shared(node.inputs[0], len(b)) and len(a) >= 2 else None
    return kinds[0] if len(a) == len(b) and kinds[0] == kinds[1] else None


def _normalised(node: ir.Node, name: str, default: int) -> int | None:
    """An axis attribute, counted from the front."""
    dims = dims_of(node.inputs[0])
    attribute = node.attributes.get(name)
    axis = default if attribute is None else attribute.as_int()
    return None if dims is None else axis % len(dims) if dims else None


def _along(default: int) -> Rule:
    """Operators that work along one axis, given as an attribute, of all operands."""

    def rule(state: _State, node: ir.Node, kinds: list[Rows | None]) -> Rows | None:
        axis = _normalised(node, "axis", default)
        return _data_only(state, node, kinds) if axis else None

    return rule


def _concat(state: _State, node: ir.Node, kinds: list[Rows | None]) -> Rows | None:
    axis = _normalised(node, "axis", 1)
    return kinds[0] if axis and all(kind == kinds[0] for kind in kinds) else None


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


def _reduce(state: _State, node: ir.Node, kinds: list[Rows | None]) -> Rows | None:
    axes = _listed_axes(node, 1)
    return _data_only(state, node, kinds) if axes and 0 not in axes else None


def _squeeze(state: _State, node: ir.Node, kinds: list[Rows | None]) -> Rows | None:
    axes = _listed_axes(node, 1)
    return _data_only(state, node, kinds) if axes and 0 not in axes else None


def _unsqueeze(state: _State, node: ir.Node, kinds: list[Rows | None]) -> Rows | None:
    rank = dims_of(node.outputs[0])
    attribute = node.attributes.get("axes")
    array = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = list(attribute.as_ints()) if attribute is not None else None if array is None else array.ravel().tolist()
    if rank is None or axes is None or any(int(axis) % len(rank) == 0 for axis in axes):
        return None
    return _data_only(state, node, kinds)


def _transpose(state: _State, node: ir.Node, kinds: list[Rows | None]) -> Rows | None:
    order = node.attributes.get("perm")
    return kinds[0] if order is not None and order.as_ints()[0] == 0 else None


def _reshape(state: _State, node: ir.Node, kinds: list[Rows | None]) -> Rows | None:
    """[k n, i...] -> [k' n, o...] in row-major order; the shape operand is written anew without the batch size."""
    before, after = dims_of(node.inputs[0]), dims_of(node.outputs[0])
    rows = kinds[0]
    if rows is None or not before or not after or kinds[1] is not None:
        return None
    found = _rows_after(rows, before[1:], after[1:])
    if found is None:
        return None
    target = [-1]
    for axis, dim in enumerate(after[1:], start=1):
        if isinstance(dim, int):
            target.append(dim)
        elif axis < len(before) and before[axis] == dim:
            target.append(0)  # copied
        else:
            return None
    state.shapes[node] = tuple(target)
    return found


def _flatten(state: _State, node: ir.Node, kinds: list[Rows | None]) -> Rows | None:
    before, after = dims_of(node.inputs[0]), dims_of(node.outputs[0])
    axis = _normalised(node, "axis", 1)
    if kinds[0] is None or not before or not after or not axis:
        return None
    return _rows_after(kinds[0], before[1:], before[axis:])


def _rows_after(rows: Rows, before: tuple[Dim | None, ...], after: tuple[Dim | None, ...]) -> Rows | None:
    """Rows per sample once [rows, before...] is seen as [rows', after...]."""
    if None in before or None in after:
        return None
    symbols = sorted([*rows[1], *(dim for dim in before if isinstance(dim, str))])
    for dim in after:
        if isinstance(dim, str):
            if dim not in symbols:
                return None
            symbols.remove(dim)
    number = rows[0] * int(np.prod([dim for dim in before if isinstance(dim, int)], dtype=np.int64))
    divisor = int(np.prod([dim for dim in after if isinstance(dim, int)], dtype=np.int64))
    if divisor == 0 or number % divisor:
        return None
    return number // divisor, tuple(symbols)


def _split(state: _State, node: ir.Node, kinds: list[Rows | None]) -> Rows | None:
    return _data_only(state, node, kinds) if _normalised(node, "axis", 0) else None


def _slice(state: _State, node: ir.Node, kinds: list[Rows | None]) -> Rows | None:
    axes = _listed_axes(node, 3)
    return _data_only(state, node, kinds) if axes and 0 not in axes else None


def _gather(state: _State, node: ir.Node, kinds: list[Rows | None]) -> Rows | None:
    axis = _normalised(node, "axis", 0)
    if kinds[0] is None:
        return kinds[1] if axis == 0 else None  # a table, read at the samples' indices
    return kinds[0] if axis and kinds[1] is None else None


def _gather_elements(state: _State, node: ir.Node, kinds: list[Rows | None]) -> Rows | None:
    return kinds[0] if _normalised(node, "axis", 0) and kinds[0] == kinds[1] else None


def _pad(state: _State, node: ir.Node, kinds: list[Rows | None]) -> Rows | None:
    dims = dims_of(node.inputs[0])
    pads = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if dims is None or pads is None or len(node.inputs) > 3 or pads.size != 2 * len(dims):
        return None
    return _data_only(state, node, kinds) if not pads[0] and not pads[len(dims)] else None


def _expand(state: _State, node: ir.Node, kinds: list[Rows | None]) -> Rows | None:
    target, dims = constant_of(node.inputs[1]), dims_of(node.inputs[0])
    if target is None or dims is None or target.size > len(dims):
        return None
    return kinds[0] if target.size < len(dims) or int(target[0]) == 1 else None


def _cumulative(state: _State, node: ir.Node, kinds: list[Rows | None]) -> Rows | None:
    dims, axis = dims_of(node.inputs[0]), constant_of(node.inputs[1])
    if dims is None or axis is None or int(axis.reshape(-1)[0]) % len(dims) == 0:
        return None
    return _data_only(state, node, kinds)


def _matrices(state: _State, node: ir.Node, kinds: list[Rows | None]) -> Rows | None:
    """The last two axes, of at least three."""
    dims = dims_of(node.inputs[0])
    return _data_only(state, node, kinds) if dims is not None and len(dims) >= 3 else None


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
_RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_SPATIAL.split(), _spatial),
    **dict.fromkeys(_REDUCTIONS.split(), _reduce),
    **dict.fromkeys(("Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization", "TopK"), _along(-1)),
    **dict.fromkeys(("ArgMax", "ArgMin"), _along(0)),
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
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Trilu": _matrices,
    "Unsqueeze": _unsqueeze,
}
