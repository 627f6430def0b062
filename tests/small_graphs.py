"""Small float64 graphs written as ONNX text, their compaction, and the reference evaluation of both."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import numpy_helper

from converters.compaction import Compaction, Widths, compact

# float64 sums of at most a thousand terms in another order: about 1e-13
LIMIT = 1e-10


def graph(text: str, opset: int = 20, **initializers: object) -> onnx.ModelProto:
    """A model from the text of its graph, with initializers by name."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]> case {text}')
    for name, value in initializers.items():
        array = np.asarray(value)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def compacted(model: onnx.ModelProto, widths: Widths | None = None) -> tuple[onnx.ModelProto, Compaction]:
    """The compact model as a checked protobuf, and the compaction."""
    result = compact(ir.from_proto(model), widths)
    proto = ir.to_proto(result.model)
    onnx.checker.check_model(proto, full_check=True)
    return proto, result


def difference(before: onnx.ModelProto, after: onnx.ModelProto, **feeds: NDArray[np.generic]) -> float:
    """Largest difference of all outputs, relative to their scale."""
    worst = 0.0
    old = onnx.reference.ReferenceEvaluator(before).run(None, feeds)
    new = onnx.reference.ReferenceEvaluator(after).run(None, feeds)
    for a, b in zip(old, new, strict=True):
        assert a.shape == b.shape
        worst = max(worst, float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)))
    return worst


def shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Initializers by name."""
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def operators(model: onnx.ModelProto) -> list[str]:
    """Operator types in graph order."""
    return [node.op_type for node in model.graph.node]
