"""Which spaces do the axes of a traced network's tensors and parameters lie in, and what reads and writes them?

One walk over the graph. An operator without a rule pins all that it touches, so that an unknown operator costs gates
and never correctness (which is the compaction engine's business anyway: a coupling that is missed here leads to gates
that free less than expected, never to another function).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.fx import Node

from l0runtime.gates.symbolic_axes import Axis, axis_size, concatenate, mark, new_axis, pin, regroup, unify
from l0runtime.gates.tracing import Trace

Role = Literal["out", "in", "bias", "norm", "scale", "statistic", "table", "added"]


@dataclass(frozen=True)
class Contraction:
    """One multiplication of matrices: a convolution, a linear layer, or a product of two activations.

    Args:
        node: name in the graph.
        macs: multiply-accumulates at the example's batch size.
        axes: the axes whose sizes it is the product of.
        weight: name of its weight, None for two activations.
        bias: name of its bias.
        out_axis, in_axis: axes of the weight that it writes and reads; in_axis is None for a depthwise convolution.
    """

    node: Node
    macs: int
    axes: tuple[Axis, ...]
    weight: str | None = None
    bias: str | None = None
    out_axis: int = 0
    in_axis: int | None = None


@dataclass
class Couplings:
    """What one walk over the graph found.

    Args:
        tensors: name of each parameter and buffer -> its axes.
        roles: (name, axis) -> what the tensor does there; an axis that is absent is only added.
        contractions: in the order of the graph.
        norms: node -> names of its affine weight and bias.
        written: nodes that write a tensor of activations (views of one write none) -> its axes.
        unknown: operators without a rule.
    """

    tensors: dict[str, list[Axis]] = field(default_factory=dict)
    roles: dict[tuple[str, int], Role] = field(default_factory=dict)
    contractions: list[Contraction] = field(default_factory=list)
    norms: dict[Node, tuple[str, ...]] = field(default_factory=dict)
    written: dict[Node, tuple[Axis, ...]] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)


Value = Any  # list[Axis] for a tensor, a tuple of values, None for anything else
Rule = Callable[["Walk", Node], Value]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of the operators of these names (without the namespace and a trailing underscore)."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def find_couplings(trace: Trace) -> Couplings:
    """Walk the graph once and tie what belongs together."""
    walk = Walk(trace)
    for node in trace.graph.nodes:
        walk.visit(node)
    return walk.found


class Walk:
    """The axes of every value so far."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.found = Couplings()
        self.axes: dict[Node, Value] = {}
        self.constant: set[Node] = set()  # depends on no input of the model

    def visit(self, node: Node) -> None:
        if node.op == "placeholder":
            self.axes[node] = self._placeholder(node)
        elif node.op == "output":
            for value in node.all_input_nodes:
                self.pin(value, "it is an output of the model")
        elif node.op == "call_function":
            if node.all_input_nodes and all(source in self.constant for source in node.all_input_nodes):
                self.constant.add(node)
            name = operator_name(node)
            apply = RULES.get(name)
            if apply is None:
                self.found.unknown.add(name)
                self.axes[node] = self.give_up(node, f"the operator {name} has no rule")
            else:
                self.axes[node] = apply(self, node)
            if node not in self.constant and name not in _WRITES_NOTHING and isinstance(self.axes[node], list):
                self.found.written[node] = tuple(self.axes[node])

    def _placeholder(self, node: Node) -> Value:
        name = self.trace.tensors.get(node.name)
        if name is None:
            return self.fresh(node, "it is an input of the model")
        self.constant.add(node)
        axes = self.fresh(node)
        self.found.tensors[name] = axes or []
        return axes

    # --- what rules use ---------------------------------------------------------------------------------------------

    def fresh(self, node: Node, pinned: str | None = None) -> Value:
        """Axes of their own for a node's result."""
        return _axes_of(node.meta.get("val"), pinned)

    def of(self, node: object) -> list[Axis]:
        """The axes of an argument; no axes for a number."""
        value = self.axes.get(node) if isinstance(node, Node) else None
        return value if isinstance(value, list) else []

    def pin(self, node: Node, reason: str) -> None:
        value = self.axes.get(node)
        for axes in value if isinstance(value, tuple) else (value,):
            for axis in axes or ():
                pin(axis, reason)

    def give_up(self, node: Node, reason: str) -> Value:
        """Pin all inputs; the result has pinned axes of its own."""
        for source in node.all_input_nodes:
            self.pin(source, reason)
        return self.fresh(node, reason)

    def tensor(self, node: object) -> str | None:
        """Name of the parameter or buffer that an argument is, perhaps viewed in another shape."""
        while isinstance(node, Node) and node.op == "call_function" and operator_name(node) in _VIEWS:
            node = node.args[0]
        return self.trace.tensors.get(node.name) if isinstance(node, Node) else None

    def note(self, node: object, role: Role, axis: int | None = None) -> None:
        """Remember what a parameter does; on all of its axes where none is named."""
        name = self.tensor(node)
        if name is not None:
            for position in range(len(self.found.tensors[name])) if axis is None else (axis,):
                if self.found.roles.get((name, position)) not in ("out", "table"):  # tied weights: writing counts
                    self.found.roles[name, position] = role


def operator_name(node: Node) -> str:
    """`relu` for aten.relu_.default; the function's own name for what is no ATen operator."""
    schema = getattr(node.target, "_schema", None)
    name = str(schema.name).split("::")[-1] if schema is not None else getattr(node.target, "__name__", "unknown")
    return name.rstrip("_")


def _axes_of(value: object, pinned: str | None) -> Value:
    if isinstance(value, torch.Tensor):
        return [new_axis(int(size), pinned) for size in value.shape]
    if isinstance(value, list | tuple):
        return tuple(_axes_of(item, pinned) for item in value)
    return None


def shape_of(node: Node) -> list[int]:
    """Shape of a node's result."""
    return [int(size) for size in node.meta["val"].shape]


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of an ATen operator, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


# --- elementwise operators ------------------------------------------------------------------------------------------

_VIEWS = set(
    "view reshape permute transpose t unsqueeze squeeze flatten expand to contiguous".split()  # noqa: SIM905
)
_WRITES_NOTHING = _VIEWS | set(
    "flatten unflatten alias detach slice select split unbind getitem dropout feature_dropout".split()  # noqa: SIM905
)
_SAME = """
    relu relu6 gelu silu sigmoid tanh hardtanh hardswish hardsigmoid leaky_relu elu selu celu mish softplus softsign
    prelu log_sigmoid hardshrink clamp clamp_min clamp_max exp log sqrt rsqrt pow neg abs sin cos erf reciprocal square
    round floor dropout feature_dropout alpha_dropout native_dropout contiguous clone to _to_copy detach alias copy
    lift_fresh_copy type_as float zeros_like ones_like full_like empty_like fill nan_to_num isnan isinf
    mul div add sub rsub maximum minimum addcmul lerp where masked_fill eq ne lt le gt ge
    logical_and logical_or logical_not bitwise_and bitwise_or bitwise_not __and __or
""".split()  # noqa: SIM905


@rule(*_SAME)
def _elementwise(walk: Walk, node: Node) -> Value:
    name = operator_name(node)
    operands = [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, Node) and walk.of(value)]
    shape = shape_of(node)
    result: list[Axis] = []
    for back in range(len(shape), 0, -1):
        size = shape[-back]
        meeting = [walk.of(value)[-back] for value in operands if len(walk.of(value)) >= back]
        meeting = [axis for axis in meeting if axis_size(axis) == size and size > 1]
        for axis in meeting[1:]:
            unify(meeting[0], axis)
        result.append(meeting[0] if meeting else new_axis(size, "it is made of constants"))
    moving = [value for value in operands if value not in walk.constant]
    if name in ("add", "sub") and len(moving) > 1:
        for axis in result:
            mark(axis, "is_added_to")
    if name in ("mul", "div"):
        for value in operands:
            if value in walk.constant:
                walk.note(value, "scale")
    return result


# --- contractions ---------------------------------------------------------------------------------------------------


@rule("linear")
def _linear(walk: Walk, node: Node) -> Value:
    x, weight = walk.of(node.args[0]), walk.of(node.args[1])  # weight: [out, in]
    bias = argument(node, 2, "bias")
    unify(x[-1], weight[1])
    _note_contraction(walk, node, (*x[:-1], *weight), bias, 0, 1)
    return [*x[:-1], weight[0]]


@rule("conv1d", "conv2d", "conv3d", "convolution")
def _convolution(walk: Walk, node: Node) -> Value:
    x, weight = walk.of(node.args[0]), walk.of(node.args[1])  # weight: [out, in / groups, *kernel]
    bias = argument(node, 2, "bias")
    rank = len(weight) - 2
    groups = int(argument(node, 8 if operator_name(node) == "convolution" else 6, "groups", 1))
    if operator_name(node) == "convolution" and argument(node, 6, "transposed", False):
        return walk.give_up(node, "a transposed convolution has no rule")
    for axis in x[-rank:]:
        pin(axis, "a convolution's window slides over it")
    spatial = [new_axis(size, "a convolution's window slides over it") for size in shape_of(node)[-rank:]]
    channels = axis_size(x[1])
    if groups == 1:
        unify(x[1], weight[1])
        axes: tuple[Axis, ...] = (x[0], weight[0], weight[1], *weight[2:], *spatial)
        in_axis: int | None = 1
    elif groups == channels == axis_size(weight[0]):
        unify(x[1], weight[0])
        axes, in_axis = (x[0], weight[0], *weight[2:], *spatial), None
    else:
        pin(x[1], "a grouped convolution reads it")
        pin(weight[0], "a grouped convolution writes it")
        axes, in_axis = (x[0], *weight, *spatial), 1
    _note_contraction(walk, node, axes, bias, 0, in_axis)
    return [x[0], weight[0], *spatial]


def _note_contraction(
    walk: Walk, node: Node, axes: tuple[Axis, ...], bias: object, out_axis: int, in_axis: int | None
) -> None:
    weight = node.args[1]
    walk.note(weight, "out", out_axis)
    if in_axis is not None:
        walk.note(weight, "in", in_axis)
    if isinstance(bias, Node):
        unify(walk.of(bias)[0], walk.of(weight)[out_axis])
        walk.note(bias, "bias")
    walk.found.contractions.append(
        Contraction(
            node,
            math.prod(axis_size(axis) for axis in axes),
            axes,
            walk.tensor(weight),
            walk.tensor(bias),
            out_axis,
            in_axis,
        )
    )


@rule("mm", "bmm", "matmul")
def _matmul(walk: Walk, node: Node) -> Value:
    return _product(walk, node, node.args[0], node.args[1], None)


@rule("addmm", "baddbmm")
def _addmm(walk: Walk, node: Node) -> Value:
    return _product(walk, node, node.args[1], node.args[2], node.args[0])


def _product(walk: Walk, node: Node, left: object, right: object, bias: object) -> Value:
    a, b = walk.of(left), walk.of(right)
    if len(a) < 2 or len(b) < 2:
        return walk.give_up(node, "a product with a vector has no rule")
    batch: list[Axis] = []
    for back in range(max(len(a), len(b)), 2, -1):
        meeting = [axes[-back] for axes in (a, b) if len(axes) >= back and axes[-back]]
        if len(meeting) == 2:
            unify(*meeting)
        batch.append(meeting[0] if meeting else ())
    unify(a[-1], b[-2])
    result = [*batch, a[-2], b[-1]]
    if isinstance(bias, Node) and walk.of(bias):
        unify(walk.of(bias)[-1], b[-1])
    axes = (*batch, a[-2], a[-1], b[-1])
    macs = math.prod(axis_size(axis) for axis in axes)
    weight = walk.tensor(right) if right in walk.constant else None
    if weight is None or len(walk.found.tensors[weight]) != 2 or len(b) != 2:
        pin(a[-1], "two activations are multiplied along it")
        for axis in batch:
            mark(axis, "is_head")
        walk.found.contractions.append(Contraction(node, macs, axes))
        return result
    stored = walk.found.tensors[weight]
    out_axis = 1 if stored[1] == b[1] else 0  # [in, out], unless the weight was transposed
    walk.note(right, "out", out_axis)
    walk.note(right, "in", 1 - out_axis)
    walk.note(bias, "bias")
    walk.found.contractions.append(Contraction(node, macs, axes, weight, walk.tensor(bias), out_axis, 1 - out_axis))
    return result


@rule("scaled_dot_product_attention")
def _attention(walk: Walk, node: Node) -> Value:
    q, k, v = (walk.of(node.args[position]) for position in range(3))  # [..., heads, length, size]
    for position in range(len(q) - 2):
        if axis_size(q[position]) == axis_size(k[position]) == axis_size(v[position]):
            unify(q[position], k[position])
        else:  # enable_gqa: each key head serves a block of query heads
            groups = regroup([q[position]], [axis_size(k[position]), axis_size(q[position]) // axis_size(k[position])])
            if groups is None:
                return walk.give_up(node, "query heads cannot be split into groups")
            unify(groups[0], k[position])
            pin(groups[1], "query heads of one group share their key")
        unify(k[position], v[position])
    mark(q[-3] if len(q) > 2 else (), "is_head")
    unify(q[-1], k[-1])
    unify(k[-2], v[-2])
    pin(k[-2], "softmax mixes it")
    pin(q[-1], "it is inside a head: two activations are multiplied along it")
    pin(v[-1], "it is inside a head: gate the heads")
    for last in (q[-1], v[-1]):  # scores, then their product with the values
        axes = (*q[:-1], k[-2], last)
        walk.found.contractions.append(Contraction(node, math.prod(axis_size(axis) for axis in axes), axes))
    return [*q[:-1], v[-1]]


@rule("embedding")
def _embedding(walk: Walk, node: Node) -> Value:
    table, index = walk.of(node.args[0]), walk.of(node.args[1])
    pin(table[0], "it is looked up by index")
    walk.note(node.args[0], "table")
    return [*index, table[1]]


# --- norms and reductions -------------------------------------------------------------------------------------------


@rule("batch_norm", "_native_batch_norm_legit_no_training")
def _batch_norm(walk: Walk, node: Node) -> Value:
    x = walk.of(node.args[0])
    for position, value in enumerate(node.args[1:5]):
        if isinstance(value, Node):
            unify(x[1], walk.of(value)[0])
            walk.note(value, "norm" if position < 2 else "statistic")
    walk.found.norms[node] = tuple(name for value in node.args[1:3] if (name := walk.tensor(value)) is not None)
    return x


@rule("layer_norm", "rms_norm")
def _layer_norm(walk: Walk, node: Node) -> Value:
    x = walk.of(node.args[0])
    affine = [value for value in node.args[2:4] if isinstance(value, Node)]
    for value in affine:
        for axis, other in zip(reversed(x), reversed(walk.of(value)), strict=False):
            unify(axis, other)
        walk.note(value, "norm")
    for axis in x[len(x) - len(list(node.args[1])) :]:  # type: ignore[arg-type]
        mark(axis, "is_mixed")
    walk.found.norms[node] = tuple(name for value in affine if (name := walk.tensor(value)) is not None)
    return x


@rule("mean", "sum")
def _reduce(walk: Walk, node: Node) -> Value:
    x = walk.of(node.args[0])
    dims = argument(node, 1, "dim")
    positions = {position % len(x) for position in ([dims] if isinstance(dims, int) else dims or range(len(x)))}
    for position in positions:
        mark(x[position], "is_mixed")
    if len(shape_of(node)) == len(x):
        return [() if position in positions else axis for position, axis in enumerate(x)]
    return [axis for position, axis in enumerate(x) if position not in positions]


@rule("softmax", "_softmax", "log_softmax", "cumsum")
def _softmax(walk: Walk, node: Node) -> Value:
    x = walk.of(node.args[0])
    pin(x[int(node.args[1])], "softmax mixes it")  # type: ignore[arg-type]
    return x


# --- windows over space: batch and channels pass, the rest is pinned -------------------------------------------------


@rule(
    "max_pool1d",
    "max_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "upsample_nearest2d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
)
def _pool(walk: Walk, node: Node) -> Value:
    x = walk.of(node.args[0])
    shape = shape_of(node)
    for axis in x[2:]:
        pin(axis, "a window slides over it")
    return [*x[:2], *(new_axis(size, "a window slides over it") for size in shape[2:])]


@rule("pad", "constant_pad_nd", "roll", "flip")
def _pad(walk: Walk, node: Node) -> Value:
    x, shape = walk.of(node.args[0]), shape_of(node)
    name = operator_name(node)
    moved: set[int] = set()
    if name in ("roll", "flip"):
        moved = {int(dim) % len(x) for dim in argument(node, 2 if name == "roll" else 1, "dims") or range(len(x))}
    result: list[Axis] = []
    for position, axis in enumerate(x):
        if position not in moved and axis_size(axis) == shape[position]:
            result.append(axis)
        else:
            pin(axis, f"{name} moves it")
            result.append(new_axis(shape[position], f"{name} moves it"))
    return result


# --- views ----------------------------------------------------------------------------------------------------------


@rule("view", "reshape", "flatten", "unflatten", "_unsafe_view")
def _reshape(walk: Walk, node: Node) -> Value:
    result = regroup(walk.of(node.args[0]), shape_of(node))
    return walk.give_up(node, "a reshape cuts through it") if result is None else result


@rule("permute")
def _permute(walk: Walk, node: Node) -> Value:
    x = walk.of(node.args[0])
    return [x[position] for position in node.args[1]]  # type: ignore[index, union-attr]


@rule("transpose", "t", "swapaxes", "numpy_T")
def _transpose(walk: Walk, node: Node) -> Value:
    x = list(walk.of(node.args[0]))
    if len(x) < 2:
        return x
    first, second = (int(d) for d in node.args[1:3]) if len(node.args) > 2 else (0, 1)  # type: ignore[arg-type]
    x[first], x[second] = x[second], x[first]
    return x


@rule("unsqueeze")
def _unsqueeze(walk: Walk, node: Node) -> Value:
    x = list(walk.of(node.args[0]))
    x.insert(int(node.args[1]) % (len(x) + 1), ())  # type: ignore[arg-type]
    return x


@rule("squeeze")
def _squeeze(walk: Walk, node: Node) -> Value:
    x = walk.of(node.args[0])
    dims = argument(node, 1, "dim")
    chosen = range(len(x)) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {int(d) % len(x) for d in chosen if axis_size(x[int(d) % len(x)]) == 1}
    return [axis for position, axis in enumerate(x) if position not in gone]


@rule("expand", "expand_as", "broadcast_to", "repeat")
def _expand(walk: Walk, node: Node) -> Value:
    x, shape = walk.of(node.args[0]), shape_of(node)
    x = [*([()] * (len(shape) - len(x))), *x]
    result: list[Axis] = []
    for axis, size in zip(x, shape, strict=True):
        if axis_size(axis) == size:
            result.append(axis)
        elif axis == ():
            result.append(new_axis(size, "it is a repetition"))
        else:
            return walk.give_up(node, "a repetition along it has no rule")
    return result


# --- pieces ---------------------------------------------------------------------------------------------------------


@rule("select")
def _select(walk: Walk, node: Node) -> Value:
    x = list(walk.of(node.args[0]))
    pin(x.pop(int(node.args[1])), "one index of it is selected")  # type: ignore[arg-type]
    return x


@rule("slice")
def _slice(walk: Walk, node: Node) -> Value:
    x = list(walk.of(node.args[0]))
    position = int(argument(node, 1, "dim", 0)) % len(x)
    size, length = axis_size(x[position]), shape_of(node)[position]
    start = int(argument(node, 2, "start") or 0)
    start = max(0, start + size if start < 0 else start)
    if length != size:
        x[position] = _piece(x[position], start, length, int(argument(node, 4, "step", 1)))
    return x


@rule("split", "chunk", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split")
def _split(walk: Walk, node: Node) -> Value:
    x = walk.of(node.args[0])
    position = int(argument(node, 2, "dim", 0)) % len(x)
    pieces: list[Value] = []
    start = 0
    for part in node.meta["val"]:
        length = int(part.shape[position])
        piece = list(x)
        piece[position] = _piece(x[position], start, length, 1)
        start += length
        pieces.append(piece)
    return tuple(pieces)


@rule("unbind")
def _unbind(walk: Walk, node: Node) -> Value:
    x = list(walk.of(node.args[0]))
    count = len(node.meta["val"])
    pin(x.pop(int(argument(node, 1, "dim", 0))), "it is taken apart")
    return tuple(list(x) for _ in range(count))


@rule("getitem")
def _getitem(walk: Walk, node: Node) -> Value:
    value = walk.axes.get(node.args[0])  # type: ignore[arg-type]
    if isinstance(value, tuple):
        return value[node.args[1]]  # type: ignore[index]
    return walk.fresh(node, "its origin is unknown")


def _piece(axis: Axis, start: int, length: int, step: int) -> Axis:
    """Indices start to start + length of an axis: a part of a concatenation, or one of equal blocks."""
    size = axis_size(axis)
    if length == size:
        return axis
    (space, *rest) = axis
    space = space.root()
    if not rest and space.parts is not None and step == 1:
        begin = 0
        for part in space.parts:
            if begin == start and axis_size(part) == length:
                return part
            begin += axis_size(part)
    if step == 1 and length > 1 and size % length == 0 and start % length == 0:
        blocks = regroup([axis], [size // length, length])
        if blocks is not None:
            pin(blocks[0], "it is taken apart in equal blocks")
            return blocks[1]
    pin(axis, "it is sliced")
    return new_axis(length, "it is a slice")


@rule("cat", "concat", "concatenate")
def _cat(walk: Walk, node: Node) -> Value:
    sources = [walk.of(value) for value in node.args[0]]  # type: ignore[union-attr]
    position = int(argument(node, 1, "dim", 0)) % len(sources[0])
    result = list(sources[0])
    for source in sources[1:]:
        for place, axis in enumerate(source):
            if place != position:
                unify(result[place], axis)
    result[position] = concatenate([source[position] for source in sources])
    return result


@rule("stack")
def _stack(walk: Walk, node: Node) -> Value:
    sources = [walk.of(value) for value in node.args[0]]  # type: ignore[union-attr]
    for source in sources[1:]:
        for first, other in zip(sources[0], source, strict=True):
            unify(first, other)
    result = list(sources[0])
    result.insert(int(argument(node, 1, "dim", 0)) % (len(result) + 1), new_axis(len(sources), "it is a stack"))
    return result


@rule("index")
def _index(walk: Walk, node: Node) -> Value:
    x = walk.of(node.args[0])
    indices = [value for value in node.args[1] if isinstance(value, Node)]  # type: ignore[union-attr]
    if len(indices) != 1 or node.args[1][0] is not indices[0]:  # type: ignore[index]
        return walk.give_up(node, "several indices pick from it")
    pin(x[0], "it is looked up by index")
    return [*walk.of(indices[0]), *x[1:]]


@rule("arange", "full", "zeros", "ones", "scalar_tensor", "new_ones", "new_zeros", "new_full", "empty", "tril", "triu")
def _constant(walk: Walk, node: Node) -> Value:
    walk.constant.add(node)
    return walk.fresh(node, "it is made of constants")


@rule("sym_size", "_assert_tensor_metadata", "_assert_scalar", "_assert_async", "item", "sym_constrain_range_for_size")
def _nothing(walk: Walk, node: Node) -> Value:
    return None
