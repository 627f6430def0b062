"""Which shapes does the exporter leave open, and which tensors are only computed to describe shapes?

Two passes. `complete_shapes` follows integer vectors through Shape, Gather, Concat and their kin as lists of
dimensions and fills in result shapes that are unknown. `rewrite_shape_operands` then writes the targets of
Reshape and Expand as numbers where that is possible, else as a Concat of numbers and of dimensions of the
model's inputs, so that no shape is read from inside the network and its axes are free to be cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import array_of, is_constant
from converters.compaction.dimensions import Dim, Monomial, product, same_dim
from converters.compaction.names import register_initializer
from converters.compaction.spatial import SPATIAL, spatial_shape

# outputs shaped like the broadcast of all inputs
_BROADCAST = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mean", "Sum", "And", "Or", "Xor", "Equal", "Greater"),
        *("GreaterOrEqual", "Less", "LessOrEqual", "Where", "Mod", "PRelu"),
    }
)
# outputs shaped like the first input
_LIKE_FIRST = frozenset(
    {
        *("Softmax", "LogSoftmax", "Relu", "Sigmoid", "Tanh", "Gelu", "Erf", "Exp", "Neg", "Abs", "Sqrt", "Not"),
        *("IsNaN", "IsInf", "Cast", "Identity", "Dropout", "Clip", "LayerNormalization", "Reciprocal", "Cos", "Sin"),
        *("BatchNormalization", "Celu", "Elu", "Floor", "GroupNormalization", "HardSigmoid", "HardSwish", "Log"),
        *("InstanceNormalization", "LRN", "LeakyRelu", "LpNormalization", "Mish", "Round", "Selu", "Sign", "Softplus"),
        *("RMSNormalization", "Softsign", "Swish", "ThresholdedRelu"),
    }
)
_ANONYMOUS = ir.SymbolicDim(None)
_FIRST_SHAPE_RANGE = 15


def complete_shapes(graph: ir.Graph) -> dict[ir.Value, list[Dim]]:
    """Fill in unknown dimensions in one forward pass.

    Returns:
        The integer vectors (and scalars) whose entries are known dimensions.
    """
    contents: dict[ir.Value, list[Dim]] = {}
    for node in graph:
        if node.domain not in ("", "ai.onnx"):
            continue
        entries = _contents(node, contents)
        if entries is not None:
            contents[node.outputs[0]] = entries
        output = node.outputs[0]
        if output.shape is None or any(not isinstance(d, int) and d.value is None for d in output.shape):
            shape = _infer(node, contents)
            if shape is not None and (output.shape is None or len(output.shape) == len(shape)):
                output.shape = ir.Shape(shape if output.shape is None else _merge(list(output.shape), shape))
                if output.type is None and node.op_type in _LIKE_FIRST - {"Cast", "Not", "IsNaN", "IsInf"}:
                    source = node.inputs[0]
                    output.type = None if source is None else source.type
    return contents


def _merge(old: Sequence[Dim], new: Sequence[Dim]) -> list[Dim]:
    return [n if not isinstance(o, int) and o.value is None else o for o, n in zip(old, new, strict=True)]


def entries_of(value: ir.Value | None, contents: dict[ir.Value, list[Dim]]) -> list[Dim] | None:
    """The entries of an integer vector or scalar as dimensions, None if they are not known."""
    array = array_of(value)
    if array is not None:
        if array.dtype.kind not in "iu" or array.ndim > 1 or array.size > 64:
            return None
        return [int(number) for number in array.ravel()]
    return None if value is None else contents.get(value)


def _contents(node: ir.Node, contents: dict[ir.Value, list[Dim]]) -> list[Dim] | None:
    source = node.inputs[0] if node.inputs else None
    if source is None:
        return None
    if node.op_type == "Shape":
        if source.shape is None:
            return None
        start, end = node.attributes.get("start"), node.attributes.get("end")
        return list(source.shape)[slice(start.as_int() if start else None, end.as_int() if end else None)]
    operands = [entries_of(value, contents) for value in node.inputs]
    first = operands[0]
    if first is None:
        return None
    if node.op_type in ("Squeeze", "Unsqueeze", "Identity", "Cast", "Reshape"):
        return first
    if any(entries is None for entries in operands):
        return None
    known = [entries for entries in operands if entries is not None]
    if node.op_type == "Concat":
        return [entry for entries in known for entry in entries]
    if node.op_type == "Gather":
        return [first[i] for i in known[1] if isinstance(i, int)] if _in_range(known[1], len(first)) else None
    if node.op_type == "ReduceProd" and len(node.inputs) == 1 and node.attributes.get("axes") is None:
        total = product(first)
        return [_ANONYMOUS if total is None else total.to_dim()]
    if node.op_type == "Div" and len(known[1]) == len(first):
        return [_quotient(*pair) for pair in zip(first, known[1], strict=True)]
    if node.op_type == "Slice" and len(known[1]) == 1:
        low, high, step = known[1][0], known[2][0], known[4][0] if len(known) > 4 else 1
        return first[low:high] if isinstance(low, int) and isinstance(high, int) and step == 1 else None
    if node.op_type == "Mul" and len(known[1]) == len(first):
        products = [product(pair) for pair in zip(first, known[1], strict=True)]
        return [_ANONYMOUS if p is None else p.to_dim() for p in products]
    return None


def _quotient(left: Dim, right: Dim) -> Dim:
    top, bottom = Monomial.of(left), Monomial.of(right)
    exact = None if top is None or bottom is None else top.divide(bottom)
    return _ANONYMOUS if exact is None else exact.to_dim()


def _in_range(index: Sequence[Dim], size: int) -> bool:
    return all(isinstance(i, int) and -size <= i < size for i in index)


def _infer(node: ir.Node, contents: dict[ir.Value, list[Dim]]) -> list[Dim] | None:
    shapes = [None if value is None or value.shape is None else list(value.shape) for value in node.inputs]
    if not shapes or shapes[0] is None:
        return None
    first = shapes[0]
    if node.op_type == "Reshape":
        target = entries_of(node.inputs[1], contents)
        return None if target is None else _reshaped(node, first, target)
    if node.op_type == "Expand":
        target = entries_of(node.inputs[1], contents)
        return None if target is None else _broadcast([first, target])
    if node.op_type == "Transpose":
        permutation = node.attributes.get("perm")
        order = list(permutation.as_ints()) if permutation else list(reversed(range(len(first))))
        return [first[dim] for dim in order]
    if node.op_type == "Resize" and len(node.inputs) > 3 and "axes" not in node.attributes:
        # the sizes are the output's shape unless the ratio of the sides decides
        keeps_ratio = node.attributes.get("keep_aspect_ratio_policy")
        stretches = keeps_ratio is None or keeps_ratio.as_string() == "stretch"
        return entries_of(node.inputs[3], contents) if stretches else None
    if node.op_type in ("Unsqueeze", "Squeeze"):
        return _with_ones(node, first)
    if node.op_type == "MatMul" and shapes[1] is not None and len(first) > 1 and len(shapes[1]) > 1:
        batch = _broadcast([first[:-2], shapes[1][:-2]])
        return None if batch is None else [*batch, first[-2], shapes[1][-1]]
    if node.op_type in _LIKE_FIRST:
        return first
    if node.op_type in SPATIAL and len(first) > 2:
        return spatial_shape(node, first, shapes[1] if node.op_type == "Conv" else None)
    if node.op_type in _BROADCAST and all(shape is not None for shape in shapes):
        return _broadcast([shape for shape in shapes if shape is not None])
    return None


def _with_ones(node: ir.Node, first: list[Dim]) -> list[Dim] | None:
    axes = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None:
        return None
    if node.op_type == "Squeeze":
        gone = {int(axis) % len(first) for axis in axes.ravel()}
        return [dim for position, dim in enumerate(first) if position not in gone]
    size = len(first) + axes.size
    new = {int(axis) % size for axis in axes.ravel()}
    rest = iter(first)
    return [1 if position in new else next(rest) for position in range(size)]


def _reshaped(node: ir.Node, source: list[Dim], target: list[Dim]) -> list[Dim] | None:
    allow_zero = node.attributes.get("allowzero")
    copies = allow_zero is None or not allow_zero.as_int()
    result = [source[p] if copies and d == 0 and p < len(source) else d for p, d in enumerate(target)]
    if -1 in result:
        total, rest = product(source), product(d for d in result if d != -1)
        missing = None if total is None or rest is None else total.divide(rest)
        result[result.index(-1)] = _ANONYMOUS if missing is None else missing.to_dim()
    return result


def _broadcast(shapes: Sequence[Sequence[Dim]]) -> list[Dim] | None:
    size = max(len(shape) for shape in shapes)
    result: list[Dim] = []
    for from_end in range(size, 0, -1):
        dims = [shape[-from_end] for shape in shapes if len(shape) >= from_end]
        wide = [dim for dim in dims if dim != 1]
        static = [dim for dim in wide if isinstance(dim, int)]
        if not wide:
            result.append(1)
        elif static:
            result.append(static[0])
        elif all(same_dim(wide[0], dim) for dim in wide[1:]):
            result.append(wide[0])
        else:
            result.append(_ANONYMOUS)
    return result


def rewrite_shape_operands(graph: ir.Graph, contents: dict[ir.Value, list[Dim]]) -> None:
    """Detach the targets of Reshape and Expand from shapes inside the network."""
    sources = symbols_of_inputs(graph)
    pieces: dict[str, ir.Value] = {}
    for node in list(graph):
        if node.op_type not in ("Reshape", "Expand") or node.domain not in ("", "ai.onnx"):
            continue
        source, target, output = node.inputs[0], node.inputs[1], node.outputs[0]
        if source is None or source.shape is None or output.shape is None or is_constant(target):
            continue
        if node.op_type == "Reshape":
            numbers = reshape_target(list(source.shape), list(output.shape))
            if numbers is not None:
                node.attributes.pop("allowzero", None)
        else:
            numbers = _expand_target(list(source.shape), list(output.shape))
        if numbers is not None:
            node.replace_input_with(1, add_constant(graph, f"{output.name}_shape", np.array(numbers, np.int64)))
            continue
        dims = list(output.shape)
        if node.op_type == "Expand":
            # 1 keeps the source's length, so only what is really repeated is written down
            dims = [
                1 if kept else dim for kept, dim in zip(_kept_by_expand(list(source.shape), dims), dims, strict=True)
            ]
        parts = _parts(graph, dims, sources, pieces, infers=node.op_type == "Reshape")
        if parts is not None:
            concat = ir.node("Concat", parts, {"axis": 0}, name=f"{output.name}_shape")
            concat.outputs[0].name = f"{output.name}_shape"
            concat.outputs[0].shape = ir.Shape([len(output.shape)])
            concat.outputs[0].type = ir.TensorType(ir.DataType.INT64)
            graph.insert_before(node, concat)
            node.replace_input_with(1, concat.outputs[0])


def reshape_target(source: Sequence[Dim], output: Sequence[Dim]) -> list[int] | None:
    """A constant target for a Reshape: 0 copies a dimension in place, one -1 is inferred."""
    numbers: list[int] = []
    for position, dim in enumerate(output):
        if isinstance(dim, int):
            if dim == 0:
                return None
            numbers.append(dim)
        elif position < len(source) and same_dim(source[position], dim):
            numbers.append(0)
        else:
            numbers.append(-1)
    return numbers if numbers.count(-1) <= 1 else None


def _expand_target(source: Sequence[Dim], output: Sequence[Dim]) -> list[int] | None:
    numbers: list[int] = []
    for kept, dim in zip(_kept_by_expand(source, output), output, strict=True):
        if kept:
            numbers.append(1)
        elif isinstance(dim, int):
            numbers.append(dim)
        else:
            return None
    return numbers


def _kept_by_expand(source: Sequence[Dim], output: Sequence[Dim]) -> list[bool]:
    """Which output dimensions are those of the source, not repetitions."""
    new = len(output) - len(source)
    return [position >= new and same_dim(source[position - new], dim) for position, dim in enumerate(output)]


def symbols_of_inputs(graph: ir.Graph) -> dict[str, tuple[ir.Value, int]]:
    """For each plain symbol an input of the model that has it as a dimension."""
    found: dict[str, tuple[ir.Value, int]] = {}
    for value in graph.inputs:
        for position, dim in enumerate(value.shape or ()):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                found.setdefault(dim.value, (value, position))
    return found


def _parts(
    graph: ir.Graph,
    dims: Sequence[Dim],
    sources: dict[str, tuple[ir.Value, int]],
    pieces: dict[str, ir.Value],
    *,
    infers: bool,
) -> list[ir.Value] | None:
    """One vector of length 1 per dimension; at most one is left to be inferred, where that is allowed."""
    parts: list[ir.Value] = []
    inferred = 0
    for dim in dims:
        if isinstance(dim, int):
            parts.append(add_constant(graph, "dimension", np.array([dim], np.int64)))
            continue
        symbol = dim.value
        if symbol in sources:
            if symbol not in pieces:
                nodes, pieces[symbol] = read_dimension(graph, *sources[symbol], f"dimension_{symbol}")
                graph.insert_before(next(iter(graph)), nodes)
            parts.append(pieces[symbol])
        else:
            inferred += 1
            parts.append(add_constant(graph, "dimension", np.array([-1], np.int64)))
    return parts if inferred <= int(infers) else None


def read_dimension(graph: ir.Graph, value: ir.Value, position: int, name: str) -> tuple[list[ir.Node], ir.Value]:
    """Nodes that read one dimension of a value as a vector of length 1; the caller puts them into the graph.

    Before opset 15 a Shape has no range, so a Gather takes the entry.
    """
    if graph.opset_imports.get("", 0) >= _FIRST_SHAPE_RANGE:
        nodes = [ir.node("Shape", [value], {"start": position, "end": position + 1}, name=name)]
    else:
        shape = ir.node("Shape", [value], name=f"{name}_all")
        whole = shape.outputs[0]
        whole.name, whole.type = f"{name}_all", ir.TensorType(ir.DataType.INT64)
        whole.shape = None if value.shape is None else ir.Shape([len(value.shape)])
        index = add_constant(graph, f"{name}_index", np.array([position], np.int64))
        nodes = [shape, ir.node("Gather", [whole, index], {"axis": 0}, name=name)]
    output = nodes[-1].outputs[0]
    output.name, output.shape, output.type = name, ir.Shape([1]), ir.TensorType(ir.DataType.INT64)
    return nodes, output


def add_constant(graph: ir.Graph, base: str, array: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> ir.Value:
    """A new integer initializer with a name of its own."""
    name, number = base, 0
    while name in graph.initializers:
        number += 1
        name = f"{base}_{number}"
    tensor = ir.Tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    register_initializer(graph, value)
    return value
