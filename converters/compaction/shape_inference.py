"""Which shapes and types does a file leave out? onnx's inference first, onnxruntime's symbolic one for the rest.

Initializers never enter the protobuf round trip, so that a model of any size can pass it.
"""

from __future__ import annotations

import re

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

# names that onnx's inference invents for sizes that it does not know
_INVENTED = re.compile(r"unk__\d+")


def infer_missing_shapes(model: ir.Model) -> None:
    """Fill in the shape and type of values that have none; what is declared stays as it is."""
    if not _open_values(model.graph):
        return
    known_names = _symbols(model.graph)
    passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    if any(value.shape is None for value in _open_values(model.graph)):
        _infer_symbolically(model)
    for node in model.graph:
        for value in node.outputs:
            _forget_invented(value, known_names)


def _open_values(graph: ir.Graph) -> list[ir.Value]:
    return [v for node in graph for v in node.outputs if v.name and (v.shape is None or v.dtype is None)]


def _symbols(graph: ir.Graph) -> set[str]:
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    return {dim.value for v in values for dim in v.shape or () if isinstance(dim, ir.SymbolicDim) and dim.value}


def _forget_invented(value: ir.Value, known: set[str]) -> None:
    # two invented names may stand for the same size, so they would only hide what later passes can prove
    if value.shape is None:
        return
    dims = [
        ir.SymbolicDim(None)
        if isinstance(dim, ir.SymbolicDim) and dim.value and dim.value not in known and _INVENTED.fullmatch(dim.value)
        else dim
        for dim in value.shape
    ]
    value.shape = ir.Shape(dims)


def _infer_symbolically(model: ir.Model) -> None:
    # sympy and onnxruntime's tools are slow to import and seldom needed
    try:
        from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference
    except ImportError:
        return
    proto = _without_initializers(model)
    try:
        inferred = SymbolicShapeInference.infer_shapes(proto, auto_merge=True, int_max=2**31 - 1)
    except Exception:
        # the tool stops at operators that it does not know; what has no shape is then kept whole
        return
    if inferred is None:
        return
    found = {info.name: info for info in inferred.graph.value_info}
    for value in _open_values(model.graph):
        info = found.get(str(value.name))
        if info is None or not info.type.HasField("tensor_type") or not info.type.tensor_type.HasField("shape"):
            continue
        if value.dtype is None and info.type.tensor_type.elem_type:
            value.type = ir.TensorType(ir.DataType(info.type.tensor_type.elem_type))
        if value.shape is None:
            value.shape = ir.Shape(
                [
                    dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None)
                    for dim in info.type.tensor_type.shape.dim
                ]
            )


def _without_initializers(model: ir.Model) -> onnx.ModelProto:
    """The model as a proto whose large initializers are mere inputs."""
    graph = model.graph
    inputs, stored = list(graph.inputs), dict(graph.initializers)
    large = [v for v in stored.values() if v.const_value is not None and v.const_value.nbytes > 1000]
    tensors = {v: v.const_value for v in large}
    try:
        for value in large:
            if value not in inputs:
                graph.inputs.append(value)
            value.const_value = None
            assert value.name is not None
            graph.initializers.pop(value.name)
        return ir.to_proto(model)
    finally:
        for value in large:
            value.const_value = tensors[value]
            graph.register_initializer(value)
        graph.inputs.clear()
        graph.inputs.extend(inputs)
