"""What does an ONNX model compute when nothing is rounded to less than float64?

`upcast` turns every float of a model into float64, `evaluate` runs the result. Two models that compute the same
function then agree to about 1e-15, where float32 leaves 1e-6 of rounding: this is the judge in doubtful cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    import onnx

    Array = np.ndarray[Any, Any]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# onnx.reference computes these in float32 whatever the inputs
_SINGLE_PRECISION = frozenset({"AffineGrid", "CausalConvWithState", "GridSample", "LinearAttention", "MelWeightMatrix"})
_QUANTISED = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    }
)
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
# attributes that name the type of a result
_TYPE_ATTRIBUTES = {
    "Cast": "to",
    "EyeLike": "dtype",
    "BlackmanWindow": "output_datatype",
    "HammingWindow": "output_datatype",
    "HannWindow": "output_datatype",
}
_SCALE_SLOTS = (1, 2)  # roi and scales of Resize are float32 by specification


def reason_against(model: ir.Model) -> str | None:
    """Why a model cannot be judged in float64, None if it can."""
    for node in _nodes(model):
        if node.domain not in ("", "ai.onnx") and not _is_function(model, node):
            return f"{node.domain}::{node.op_type} has no float64 reference"
        if node.op_type in _QUANTISED:
            return f"{node.op_type} rounds to integers by design"
        if node.op_type in _SINGLE_PRECISION:
            return f"{node.op_type} has no float64 reference"
        if node.op_type in _RANDOM:
            return f"{node.op_type} is random"
    return None


def upcast(model: ir.Model) -> None:
    """Turn every float16, bfloat16 and float32 of a model without functions into float64, in place."""
    for graph in [model.graph, *model.graph.subgraphs()]:
        scales = {id(value) for node in graph if node.op_type == "Resize" for value in _scales_of(node)}
        for value in graph.initializers.values():
            if id(value) not in scales:
                _upcast_initializer(value)
        for value in [*graph.inputs, *graph.outputs, *(output for node in graph for output in node.outputs)]:
            if value.dtype in _FLOATS and isinstance(value.type, ir.TensorType):
                value.type = ir.TensorType(ir.DataType.DOUBLE)
        for node in graph:
            _upcast_attributes(node)


def evaluate(model: onnx.ModelProto, feed: Mapping[str, Array]) -> list[Array]:
    """Run an upcast model; floating-point inputs are widened to float64."""
    from onnx.reference import ReferenceEvaluator

    from converters.float64_operators import OPERATORS

    wide = {name: _widened(array) for name, array in feed.items()}
    with np.errstate(all="ignore"):
        return [np.asarray(output) for output in ReferenceEvaluator(model, new_ops=list(OPERATORS)).run(None, wide)]


def _widened(array: Array) -> Array:
    # bfloat16 of ml_dtypes has kind "V"
    return array.astype(np.float64) if array.dtype.kind == "f" or array.dtype.name == "bfloat16" else array


def _upcast_initializer(value: ir.Value) -> None:
    tensor = value.const_value
    if tensor is None or tensor.dtype not in _FLOATS:
        return
    value.const_value = ir.Tensor(tensor.numpy().astype(np.float64), name=tensor.name)
    value.type = ir.TensorType(ir.DataType.DOUBLE)


def _upcast_attributes(node: ir.Node) -> None:
    name = _TYPE_ATTRIBUTES.get(node.op_type)
    if name is not None and (attribute := node.attributes.get(name)) is not None:
        if attribute.as_int() in {int(dtype) for dtype in _FLOATS}:
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.DOUBLE))
    elif node.op_type in ("BlackmanWindow", "HammingWindow", "HannWindow"):
        node.attributes["output_datatype"] = ir.AttrInt64("output_datatype", int(ir.DataType.DOUBLE))
    elif node.op_type == "ConstantOfShape" and "value" not in node.attributes:
        node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(np.zeros(1)))
    elif node.op_type in ("Constant", "ConstantOfShape") and "value" in node.attributes:
        tensor = node.attributes["value"].as_tensor()
        if tensor.dtype in _FLOATS:
            node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(tensor.numpy().astype(np.float64)))
    elif node.op_type == "Constant" and ("value_float" in node.attributes or "value_floats" in node.attributes):
        ((name, attribute),) = node.attributes.items()
        numbers = [attribute.as_float()] if name == "value_float" else list(attribute.as_floats())
        del node.attributes[name]
        wide = np.array(numbers, np.float32).astype(np.float64)  # the attribute holds float32 values
        node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(wide[0] if name == "value_float" else wide))


def _scales_of(node: ir.Node) -> Iterator[ir.Value]:
    for slot in _SCALE_SLOTS:
        if slot < len(node.inputs) and (value := node.inputs[slot]) is not None:
            yield value


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _is_function(model: ir.Model, node: ir.Node) -> bool:
    return node.op_identifier() in model.functions
