"""What is the float64 twin of an ONNX model?

Every floating-point type becomes float64: initializers, Constant nodes, value types, type attributes (Cast, EyeLike,
ConstantOfShape, ...), sub-graphs and local functions. The values of the weights stay as they are stored, so the twin is
the exact function that the low-precision model approximates. The scales of Resize stay float32, the only type that the
operator takes.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
# Attributes of type INT that name an element type.
TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "softmax_precision"})


def upcast(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` in which float16, bfloat16 and float32 have become float64; the original is untouched."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    _graph(twin.graph)
    for function in twin.functions:
        for node in function.node:
            _node(node)
        for value in function.value_info:
            _type(value.type)
    return twin


def _graph(graph: onnx.GraphProto) -> None:
    scales = {node.input[2] for node in graph.node if node.op_type == "Resize" and len(node.input) > 2}
    for tensor in graph.initializer:
        if tensor.name not in scales:
            _tensor(tensor)
    for sparse in graph.sparse_initializer:
        _tensor(sparse.values)
    for value in (*graph.input, *graph.output, *graph.value_info):
        _type(value.type)
    for node in graph.node:
        _node(node)


def _node(node: onnx.NodeProto) -> None:
    if node.op_type == "Constant":
        _constant(node)
    for attribute in node.attribute:
        if attribute.name in TYPE_ATTRIBUTES and attribute.type == onnx.AttributeProto.INT and attribute.i in FLOATS:
            attribute.i = TensorProto.DOUBLE
        if attribute.HasField("t"):
            _tensor(attribute.t)
        for tensor in attribute.tensors:
            _tensor(tensor)
        if attribute.HasField("g"):
            _graph(attribute.g)
        for graph in attribute.graphs:
            _graph(graph)


def _constant(node: onnx.NodeProto) -> None:
    """Rewrite value_float and value_floats, whose type is float32 by definition, as a tensor."""
    attribute = node.attribute[0]
    if attribute.name in ("value_float", "value_floats"):
        value = attribute.f if attribute.name == "value_float" else list(attribute.floats)
        tensor = numpy_helper.from_array(np.asarray(value, np.float64))
        node.attribute[0].CopyFrom(onnx.helper.make_attribute("value", tensor))


def _tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in FLOATS:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


def _type(proto: onnx.TypeProto) -> None:
    kind = proto.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        tensor_type = getattr(proto, kind)
        if tensor_type.elem_type in FLOATS:
            tensor_type.elem_type = TensorProto.DOUBLE
    elif kind in ("sequence_type", "optional_type"):
        _type(getattr(proto, kind).elem_type)
