"""Which shapes and types does a file leave out? onnx's inference first, onnxruntime's symbolic one for the rest.

Initializers never enter the protobuf round trip, so that a model of any size can pass it.
"""

from __future__ import annotations

import re

import onnx
import onnx_ir as ir

# operators whose outputs are sequences or optional values, not tensors
_SEQUENCE_MAKERS = frozenset(
    {
        *("SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceMap", "SplitToSequence"),
        "Optional",
    }
)
# names that onnx's inference invents for sizes that it does not know
_INVENTED = re.compile(r"unk__\d+")


def infer_missing_shapes(model: ir.Model) -> None:
    """Fill in the shape and type of values that have none; what is declared stays as it is."""
    if not _open_values(model.graph):
        return
    known_names = _symbols(model.graph)
    for infer in (_infer_with_onnx, _infer_symbolically):
        inferred = infer(_without_initializers(model))
        if inferred is not None:
            _merge(model.graph, inferred, known_names)
        if not any(value.shape is None for value in _open_values(model.graph)):
            return


def _restore_sequences(graph: ir.Graph) -> None:
    # the pass writes the element's type over the type of a sequence, which would make the model invalid
    sequences: set[ir.Value] = set()
    for node in graph:
        if node.op_type in _SEQUENCE_MAKERS or (node.op_type == "Identity" and node.inputs[0] in sequences):
            for output in node.outputs:
                sequences.add(output)
                output.shape, output.type = None, None


def _open_values(graph: ir.Graph) -> list[ir.Value]:
    return [v for node in graph for v in node.outputs if v.name and (v.shape is None or v.dtype is None)]


def _symbols(graph: ir.Graph) -> set[str]:
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    return {dim.value for v in values for dim in v.shape or () if isinstance(dim, ir.SymbolicDim) and dim.value}


def _infer_with_onnx(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    try:
        return onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=False, data_prop=True)
    except Exception:
        # it stops at types that an operator does not list; what has no shape is then kept whole
        return None


def _infer_symbolically(proto: onnx.ModelProto) -> onnx.ModelProto | None:
    # sympy and onnxruntime's tools are slow to import and seldom needed
    try:
        from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

        return SymbolicShapeInference.infer_shapes(proto, auto_merge=True, int_max=2**31 - 1)  # type: ignore[no-any-return]
    except Exception:
        # not installed, or it stops at operators that it does not know; what has no shape is then kept whole
        return None


def _merge(graph: ir.Graph, inferred: onnx.ModelProto, known: set[str]) -> None:
    found = {info.name: info.type for info in (*inferred.graph.value_info, *inferred.graph.output)}
    for value in _open_values(graph):
        info = found.get(str(value.name))
        if info is None or not info.HasField("tensor_type"):
            continue
        if value.type is None and info.tensor_type.elem_type:
            value.type = ir.TensorType(ir.DataType(info.tensor_type.elem_type))
        if value.shape is None and info.tensor_type.HasField("shape"):
            value.shape = ir.Shape([_dim(dim, known) for dim in info.tensor_type.shape.dim])


def _dim(dim: onnx.TensorShapeProto.Dimension, known: set[str]) -> int | ir.SymbolicDim:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    name = dim.dim_param or None
    # two invented names may stand for the same size, so they would only hide what later passes can prove
    if name is not None and name not in known and _INVENTED.fullmatch(name):
        name = None
    return ir.SymbolicDim(name)


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
