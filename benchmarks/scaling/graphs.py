"""Graphs of any length: residual blocks of convolutions, and blocks of attention, with half of the units closed."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

_WIDTH = 8
_HEADS = 2


class _Graph:
    """Nodes and initializers in the making."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def give(self, array: NDArray[np.generic]) -> str:
        name = f"w{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int) -> str:
        scale = np.sqrt(np.prod(shape[1:]))
        return self.give((self.random.normal(size=shape) / scale).astype(np.float32))

    def vector(self, n: int, low: float = -1.0) -> str:
        return self.give(self.random.uniform(low, 1.0, n).astype(np.float32))

    def gate(self, shape: tuple[int, ...]) -> str:
        z = self.random.uniform(0.3, 1.0, shape).astype(np.float32)
        z.reshape(-1)[: z.size // 2] = 0
        return self.give(z)

    def add(self, op_type: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def model(self, shape: list[int | str], result: str) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [result], ["y"], name="last"))
        graph = helper.make_graph(
            self.nodes, "blocks",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            self.initializers,
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def residual_blocks(nodes: int) -> onnx.ModelProto:
    """x + conv(relu(norm(gate * conv(x)))), 6 nodes a block; x: [N, 8, H, W]."""
    g = _Graph(0)
    x = "x"
    for _ in range(nodes // 6):
        h = g.add("Conv", x, g.weight(_WIDTH, _WIDTH, 3, 3), pads=[1, 1, 1, 1])
        h = g.add("Mul", h, g.gate((_WIDTH, 1, 1)))
        statistics = [g.vector(_WIDTH), g.vector(_WIDTH), g.vector(_WIDTH), g.vector(_WIDTH, 0.5)]
        h = g.add("BatchNormalization", h, *statistics)
        h = g.add("Relu", h)
        h = g.add("Conv", h, g.weight(_WIDTH, _WIDTH, 3, 3), pads=[1, 1, 1, 1])
        x = g.add("Add", x, h)
    return g.model(["N", _WIDTH, "H", "W"], x)


def attention_blocks(nodes: int) -> onnx.ModelProto:
    """x + attention(norm(x)), the second head closed, 16 nodes a block; x: [N, S, 8]."""
    g = _Graph(1)
    x = "x"
    split = g.give(np.array([0, 0, _HEADS, _WIDTH // _HEADS], np.int64))
    merge = g.give(np.array([0, 0, _WIDTH], np.int64))
    for _ in range(nodes // 16):
        h = g.add("LayerNormalization", x, g.vector(_WIDTH), g.vector(_WIDTH))
        q, k, v = (
            g.add(
                "Transpose",
                g.add("Reshape", g.add("MatMul", h, g.weight(_WIDTH, _WIDTH)), split),
                perm=[0, 2, 3, 1] if part == "k" else [0, 2, 1, 3],
            )
            for part in "qkv"
        )
        p = g.add("Softmax", g.add("MatMul", q, k), axis=-1)
        o = g.add("Reshape", g.add("Transpose", g.add("MatMul", p, v), perm=[0, 2, 1, 3]), merge)
        o = g.add("MatMul", g.add("Mul", o, g.gate((_WIDTH,))), g.weight(_WIDTH, _WIDTH))
        x = g.add("Add", x, o)
    return g.model(["N", "S", _WIDTH], x)


def grouped_blocks(nodes: int) -> onnx.ModelProto:
    """x + conv(relu(grouped(relu(conv(relu(norm(gate * conv(x)))))))), 9 nodes a block.

    Each block has constants that one channel must stand for, and groups that must stay even.
    """
    g = _Graph(2)
    x, n = "x", 2 * _WIDTH
    for _ in range(nodes // 9):
        h = g.add("Conv", x, g.weight(n, _WIDTH, 1, 1))
        h = g.add("Mul", h, g.gate((n, 1, 1)))
        h = g.add("BatchNormalization", h, g.vector(n), g.vector(n), g.vector(n), g.vector(n, 0.5))
        h = g.add("Relu", h)
        h = g.add("Relu", g.add("Conv", h, g.weight(n, n, 3, 3), pads=[1, 1, 1, 1]))
        h = g.add("Relu", g.add("Conv", h, g.weight(n, 2, 3, 3), pads=[1, 1, 1, 1], group=_WIDTH))
        x = g.add("Add", x, g.add("Conv", h, g.weight(_WIDTH, n, 1, 1)))
    return g.model(["N", _WIDTH, "H", "W"], x)


def normed_blocks(nodes: int) -> onnx.ModelProto:
    """x + norm(gate * (x w1)) w2, 5 nodes a block: closed features of each norm are twins that one stands for."""
    g = _Graph(3)
    x, n = "x", 2 * _WIDTH
    for _ in range(nodes // 5):
        h = g.add("Mul", g.add("MatMul", x, g.weight(_WIDTH, n)), g.gate((n,)))
        h = g.add("LayerNormalization", h, g.vector(n), g.vector(n))
        x = g.add("Add", x, g.add("MatMul", h, g.weight(n, _WIDTH)))
    return g.model(["N", "S", _WIDTH], x)


GRAPHS = {
    "residual blocks": residual_blocks,
    "attention blocks": attention_blocks,
    "grouped blocks": grouped_blocks,
    "normed blocks": normed_blocks,
}
