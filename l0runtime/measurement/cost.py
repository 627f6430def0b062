"""How much arithmetic does an ONNX model do, and how many weights does it hold?

A multiply-accumulate (MAC) is one multiplication and one addition inside a contraction: Conv, ConvTranspose, Gemm,
MatMul, Einsum, recurrent cells and Attention, and their quantised forms. Elementwise work is not counted, as is usual.
Counted from shapes alone, for concrete input shapes; a contraction whose shapes cannot be inferred is listed in
`Cost.uncounted`, never taken as zero in silence. A conditional model is counted with all of its blocks run, and with
none (`Cost.least_macs`). Needs only onnx.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from l0runtime.conditional.metadata import conditional_blocks
from l0runtime.conditional.unrolled import unroll
from l0runtime.onnx_files import read_model
from l0runtime.sample_inputs import resolve_shapes

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

# Tensors above this many elements are weights, not shape operands: their values are not needed to infer shapes.
_LARGEST_SHAPE_OPERAND = 1024


@dataclass(frozen=True)
class NodeCost:
    """One contraction."""

    name: str  # the node's name, or its first output where it has none
    op_type: str
    macs: int


@dataclass(frozen=True)
class Cost:
    """Arithmetic and weights of a model at given input shapes."""

    parameters: int  # elements of all weights: floating-point and 4- or 8-bit initializers and constants, no scalars
    weight_bytes: int
    macs: int
    nodes: tuple[NodeCost, ...]
    uncounted: tuple[str, ...]  # contractions whose shapes are unknown; `macs` is a lower bound if there are any
    least_macs: int | None = None  # of a conditional model, when no block runs; `macs` is then of all blocks run

    @property
    def flops(self) -> int:
        """Floating-point operations, two for each multiply-accumulate."""
        return 2 * self.macs


def count_cost(
    model: onnx.ModelProto | str | Path,
    *,
    batch: int = 1,
    shapes: Mapping[str, Sequence[int]] | None = None,
    dims: Mapping[str, int] | None = None,
) -> Cost:
    """Count parameters and multiply-accumulates.

    Args:
        model: the model or its path; it is not changed.
        batch, shapes, dims: concrete input sizes, as in `l0runtime.sample_inputs.resolve_shapes`.
    Raises:
        InputError: a dynamic dimension has no size.
        ModelFileError: the file cannot be read.
    """
    import onnx

    proto = model if isinstance(model, onnx.ModelProto) else read_model(model, weights=False)
    parameters, weight_bytes = _count_parameters(proto)
    concrete = resolve_shapes(proto, batch=batch, shapes=shapes, dims=dims)
    blocks = conditional_blocks(proto)
    if blocks is None:
        nodes, uncounted = _count_nodes(proto, concrete)
        return Cost(parameters, weight_bytes, sum(node.macs for node in nodes), tuple(nodes), tuple(uncounted))
    nodes, uncounted = _count_nodes(unroll(proto, blocks, runs=True)[0], concrete)
    fewest, _ = _count_nodes(unroll(proto, blocks, runs=False)[0], concrete)
    return Cost(
        parameters,
        weight_bytes,
        sum(node.macs for node in nodes),
        tuple(nodes),
        tuple(uncounted),
        least_macs=sum(node.macs for node in fewest),
    )


def shapes_of_values(proto: onnx.ModelProto, inputs: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Every value and weight whose shape can be inferred for whole, concrete input shapes."""
    concrete = resolve_shapes(proto, shapes=inputs)
    return _infer(proto, concrete)[1]


Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
_Rule = Callable[["onnx.NodeProto", Shapes], int]


def _count_nodes(proto: onnx.ModelProto, inputs: Mapping[str, Shape]) -> tuple[list[NodeCost], list[str]]:
    """The contractions of a model, and those whose shapes are unknown."""
    graph, known = _infer(proto, inputs)
    nodes: list[NodeCost] = []
    uncounted: list[str] = []
    for node in graph.node:
        name = node.name or (node.output[0] if node.output else node.op_type)
        for attribute in node.attribute:
            for body in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                # how often a body runs is not known from shapes
                uncounted.extend(
                    f"{name}/{inner.name or inner.output[0]} ({inner.op_type}, inside {node.op_type})"
                    for inner in body.node
                    if inner.op_type in _RULES
                )
        rule = _RULES.get(node.op_type)
        if rule is None:
            continue
        try:
            macs = rule(node, known)
        except (KeyError, IndexError):  # a shape that inference left open
            uncounted.append(f"{name} ({node.op_type})")
            continue
        nodes.append(NodeCost(name, node.op_type, macs))
    return nodes, uncounted


def _infer(proto: onnx.ModelProto, inputs: Mapping[str, Shape]) -> tuple[onnx.GraphProto, dict[str, Shape]]:
    """Shape inference at concrete input shapes, on a copy without big weights (protobuf cannot pass 2 GB)."""
    import onnx
    from onnx import inliner

    light = _without_weights(proto)
    if light.functions:
        light = inliner.inline_local_functions(light)
    for value in light.graph.input:
        if value.name in inputs:
            for dim, size in zip(value.type.tensor_type.shape.dim, inputs[value.name], strict=True):
                dim.dim_value = size
    # declared output and intermediate shapes may be symbolic, or stale after the input shapes were fixed
    del light.graph.value_info[:]
    for value in light.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    known: dict[str, Shape] = {}
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            known[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    known.update({tensor.name: tuple(tensor.dims) for tensor in inferred.initializer})
    return inferred, known


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with big initializers turned into inputs of the same type and shape."""
    import onnx

    light = onnx.ModelProto()
    light.ir_version = proto.ir_version
    light.opset_import.extend(proto.opset_import)
    light.functions.extend(proto.functions)
    graph = light.graph
    graph.name = proto.graph.name
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    graph.node.extend(proto.graph.node)
    declared = {value.name for value in proto.graph.input}
    for tensor in proto.graph.initializer:
        if math.prod(tensor.dims) <= _LARGEST_SHAPE_OPERAND and not tensor.external_data:
            graph.initializer.append(tensor)
        elif tensor.name not in declared:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light


def weight_types(proto: onnx.ModelProto) -> frozenset[str]:
    """ONNX names of the types of a model's weights, such as {"FLOAT"}."""
    import onnx

    return frozenset(onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in _weights(proto))


def _weights(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """All weights; integer shape operands, indices, bools and scalars are none."""
    import onnx

    kinds = onnx.TensorProto
    not_weights = {kinds.INT64, kinds.INT32, kinds.UINT64, kinds.UINT32, kinds.INT16, kinds.UINT16}
    not_weights |= {kinds.BOOL, kinds.STRING, kinds.UNDEFINED}
    tensors = [tensor for graph in _graphs(proto.graph) for tensor in graph.initializer]
    tensors += [
        attribute.t
        for graph in _graphs(proto.graph)
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    return [tensor for tensor in tensors if tensor.data_type not in not_weights and tensor.dims]


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the bodies of its control flow."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                yield from _graphs(body)


def _count_parameters(proto: onnx.ModelProto) -> tuple[int, int]:
    """Elements and bytes of all weights."""
    weights = _weights(proto)
    elements = [math.prod(tensor.dims) for tensor in weights]
    bits = [_bits(tensor.data_type) for tensor in weights]
    return sum(elements), sum(math.ceil(n * b / 8) for n, b in zip(elements, bits, strict=True))


def _bits(data_type: int) -> int:
    import onnx

    if onnx.TensorProto.DataType.Name(data_type) in {"INT4", "UINT4", "FLOAT4E2M1"}:
        return 4
    return 8 * int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)


# --- one rule per contraction: multiply-accumulates from the shapes of its operands ---------------------------------


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _conv(node: onnx.NodeProto, known: Shapes) -> int:
    weight = known[node.input[1]]  # [C_out, C_in / groups, *kernel]
    return math.prod(known[node.output[0]]) * math.prod(weight[1:])


def _quantised_conv(node: onnx.NodeProto, known: Shapes) -> int:
    weight = known[node.input[3]]  # inputs: x, scale, zero point, w, ...
    return math.prod(known[node.output[0]]) * math.prod(weight[1:])


def _conv_transpose(node: onnx.NodeProto, known: Shapes) -> int:
    weight = known[node.input[1]]  # [C_in, C_out / groups, *kernel]: every input element meets one filter bank
    return math.prod(known[node.input[0]]) * math.prod(weight[1:])


def _gemm(node: onnx.NodeProto, known: Shapes) -> int:
    rows, columns = known[node.output[0]]
    contracted = known[node.input[0]][0 if _attribute(node, "transA", 0) else 1]
    return rows * columns * contracted


def _matmul(node: onnx.NodeProto, known: Shapes) -> int:
    return math.prod(known[node.output[0]]) * known[node.input[0]][-1]


def _einsum(node: onnx.NodeProto, known: Shapes) -> int:
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation").replace(" ", "")
    if "." in equation or len(node.input) < 2:
        raise KeyError(equation)
    sizes: dict[str, int] = {}
    for term, name in zip(equation.split("->")[0].split(","), node.input, strict=True):
        sizes.update(zip(term, known[name], strict=True))
    return math.prod(sizes.values())


def _recurrent(node: onnx.NodeProto, known: Shapes) -> int:
    x = known[node.input[0]]  # [time, batch, input], or [batch, time, input] for layout 1: the product is the same
    w, r = known[node.input[1]], known[node.input[2]]  # [directions, gates * hidden, input], [.., hidden]
    return x[0] * x[1] * (math.prod(w) + math.prod(r))


def _attention(node: onnx.NodeProto, known: Shapes) -> int:
    """Q K^T and P V: batch * heads * L_q * L_k * (d_k + d_v)."""
    q, k, v = (known[node.input[position]] for position in range(3))
    past = known[node.input[4]][2] if len(node.input) > 4 and node.input[4] else 0
    if len(q) == 4:  # [batch, heads, length, size]
        return q[0] * q[1] * q[2] * (k[2] + past) * (q[3] + v[3])
    heads, kv_heads = _attribute(node, "q_num_heads", 0), _attribute(node, "kv_num_heads", 0)
    if not heads or not kv_heads:
        raise KeyError("q_num_heads")
    # [batch, length, heads * size]; grouped keys and values are shared, but each query head multiplies with its own
    return q[0] * q[1] * (k[1] + past) * (q[2] + v[2] // kv_heads * heads)


_RULES: dict[str, _Rule] = {
    "Conv": _conv,
    "ConvInteger": _conv,
    "QLinearConv": _quantised_conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "Einsum": _einsum,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "Attention": _attention,
}
