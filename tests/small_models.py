"""Small models that the tests of the converters share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper

GATES = (1.0, 0.0, 0.5, 0.0, 0.25, 1.0)


def make_mlp(gates: tuple[float, ...] = GATES, *, inputs: int = 5, outputs: int = 3) -> onnx.ModelProto:
    """y = relu(z * (x W1 + b1)) W2 + b2 with constant gates z, x [N, inputs]."""
    generator = np.random.default_rng(7)
    width = len(gates)
    arrays = {
        "fc1.weight": generator.standard_normal((width, inputs)),
        "fc1.bias": generator.standard_normal(width),
        "gate": np.array(gates),
        "fc2.weight": generator.standard_normal((outputs, width)),
        "fc2.bias": generator.standard_normal(outputs),
    }
    nodes = [
        onnx.helper.make_node("Gemm", ["x", "fc1.weight", "fc1.bias"], ["hidden"], "fc1", transB=1),
        onnx.helper.make_node("Mul", ["hidden", "gate"], ["gated"], "mul"),
        onnx.helper.make_node("Relu", ["gated"], ["active"], "relu"),
        onnx.helper.make_node("Gemm", ["active", "fc2.weight", "fc2.bias"], ["y"], "fc2", transB=1),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "mlp",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", inputs])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", outputs])],
        [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)


def change_weight(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], None]) -> onnx.ModelProto:
    """The same model with one initializer changed in place."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name == name:
            array = onnx.numpy_helper.to_array(tensor).copy()
            change(array)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))
            return changed
    raise AssertionError(f"no initializer {name}")
