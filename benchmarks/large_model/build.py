"""How is a model of more than 2 GB made, whose weights lie in two files with offsets, half of its neurons zero?

Per block b: x + W2 relu(W1 x + b1), W1: [hidden, width], W2: [width, hidden]. Half of the hidden neurons, drawn at
random per block, have zero rows in W1 and zeros in b1. Blocks are written one at a time, so that making the
model needs the memory of one block.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

FILES = 2
# data files are usually aligned to the pages of the machine, so that they can be mapped into memory
_ALIGNMENT = 4096


class _Weights:
    """Tensors that are appended to data files in turn."""

    def __init__(self, folder: Path) -> None:
        self._paths = [folder / f"weights-{k}.bin" for k in range(FILES)]
        for path in self._paths:
            path.write_bytes(b"")
        self.tensors: list[onnx.TensorProto] = []

    def add(self, name: str, array: np.ndarray) -> None:
        path = self._paths[len(self.tensors) % FILES]
        with path.open("ab") as file:
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            offset = file.tell()
            array.tofile(file)
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        entries = (("location", path.name), ("offset", str(offset)), ("length", str(array.nbytes)))
        for key, value in entries:
            tensor.external_data.add(key=key, value=value)
        self.tensors.append(tensor)


def build(folder: Path, *, blocks: int, width: int, hidden: int, seed: int = 0) -> Path:
    """Write the model and its data files into `folder`, and return the path of the model."""
    rng = np.random.default_rng(seed)
    weights = _Weights(folder)
    nodes: list[onnx.NodeProto] = []
    x = "x"
    for block in range(blocks):
        w1 = rng.standard_normal((hidden, width), np.float32)
        w1 /= np.float32(np.sqrt(width))
        b1 = rng.standard_normal(hidden, np.float32)
        closed = rng.permutation(hidden)[: hidden // 2]
        w1[closed], b1[closed] = 0, 0
        w2 = rng.standard_normal((width, hidden), np.float32)
        w2 *= np.float32(0.5 / np.sqrt(hidden))
        for name, array in (("w1", w1), ("b1", b1), ("w2", w2)):
            weights.add(f"block{block}.{name}", array)
        p = f"block{block}"
        nodes += [
            helper.make_node("Gemm", [x, f"{p}.w1", f"{p}.b1"], [f"{p}.h"], f"{p}.first", transB=1),
            helper.make_node("Relu", [f"{p}.h"], [f"{p}.a"], f"{p}.relu"),
            helper.make_node("Gemm", [f"{p}.a", f"{p}.w2"], [f"{p}.o"], f"{p}.second", transB=1),
            helper.make_node("Add", [x, f"{p}.o"], [f"{p}.y"], f"{p}.add"),
        ]
        x = f"{p}.y"
    nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width])],
        weights.tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = folder / "gated.onnx"
    path.write_bytes(model.SerializeToString())
    return path
