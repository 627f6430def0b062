"""Which model do all servers serve? A small network on images of 28 x 28, as compaction leaves them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper


def write_model(path: Path, *, hidden: int = 64, seed: int = 0) -> Path:
    """y = relu(x W1) W2 with x [N, 784], y [N, 10]; small, so that the servers and not the model are measured."""
    generator = np.random.default_rng(seed)
    weights = {
        "w1": generator.standard_normal((784, hidden)) / 28,
        "w2": generator.standard_normal((hidden, 10)) / np.sqrt(hidden),
    }
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["x", "w1"], ["hidden"]),
            onnx.helper.make_node("Relu", ["hidden"], ["active"]),
            onnx.helper.make_node("MatMul", ["active", "w2"], ["y"]),
        ],
        "images",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 784])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 10])],
        [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    temporary = path.with_suffix(".writing")
    onnx.save(model, temporary)
    temporary.replace(path)
    return path
