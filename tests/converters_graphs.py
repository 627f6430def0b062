"""Small graphs for the engine's tests, written as ONNX text; and what a graph computes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import onnx_ir as ir


def parse(text: str, weights: Mapping[str, np.ndarray] | None = None, opset: int = 20) -> ir.Model:
    """`text` is the graph in ONNX's textual form; `weights` become initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def run(model: ir.Model, **inputs: np.ndarray) -> list[np.ndarray]:
    """The model's outputs by ONNX's reference implementation, which shares no code with the engine."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    return [np.asarray(out) for out in onnx.reference.ReferenceEvaluator(proto).run(None, inputs)]


def operators(model: ir.Model) -> list[str]:
    """Operator types in graph order."""
    return [node.op_type for node in model.graph]
