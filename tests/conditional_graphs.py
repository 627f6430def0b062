"""Small masked networks as ONNX graphs whose gate the test sets through an input of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import onnxruntime as ort
from small_graphs import graph

from converters.conditional.describe import describe
from converters.conditional.outline import Outlined, outline

RNG = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


CONVOLUTIONS = "h = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(h)  f = Conv<pads=[1,1,1,1]>(r, w2, b2)"


def residual(
    batch: str | int = "N",
    gate: str = "g = Relu(k)",
    tail: str = "m = Mul(f, g)  y = Add(x, m)",
    block: str = CONVOLUTIONS,
    **more: np.ndarray,
) -> onnx.ModelProto:
    """y = x + g(k) * conv(relu(conv(x))), x [batch, 4, 5, 5], k [batch, 1, 1, 1]."""
    signature = f"(float[{batch},4,5,5] x, float[{batch},1,1,1] k) => (float[{batch},4,5,5] y)"
    weights = {"w1": normal(4, 4, 3, 3), "b1": normal(4), "w2": normal(4, 4, 3, 3), "b2": normal(4)}
    text = f"{signature} {{ {gate} {block} {tail} }}"
    return inferred(graph(text, **{**weights, "zero": np.float32(0), **more}))


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def outlined(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[Outlined, ...]]:
    """The conditional model as a checked protobuf, and its blocks."""
    made = ir.from_proto(model)
    blocks = outline(made)
    proto = ir.to_proto(made)
    onnx.checker.check_model(proto, full_check=True)
    return proto, blocks


def run(model: onnx.ModelProto, **feed: np.ndarray) -> list[np.ndarray]:
    """Outputs in onnxruntime, optimised as a user's session is."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


def evaluate(model: onnx.ModelProto, **feed: np.ndarray) -> list[np.ndarray]:
    """Outputs by the reference evaluator of ONNX."""
    return list(onnx.reference.ReferenceEvaluator(model).run(None, feed))


def choose(rows: int, share: float) -> np.ndarray:
    """Gate values [rows, 1, 1, 1]: 1 for that share of the samples, scattered, else -1."""
    runs = np.random.default_rng(rows).permutation(rows) < round(share * rows)
    return np.where(runs, 1, -1).astype(np.float32).reshape(rows, 1, 1, 1)


def conditional_file(path: Path, masked: onnx.ModelProto) -> onnx.ModelProto:
    """Write the conditional form of a model with its description; returns it."""
    source = path.with_name(f"masked_{path.name}")
    onnx.save(masked, str(source))
    proto, blocks = outlined(masked)
    shapes = {
        value.name: tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
        for value in masked.graph.input
    }
    for key, value in describe(source, blocks, shapes).metadata().items():
        proto.metadata_props.add(key=key, value=value)
    onnx.save(proto, str(path))
    return proto


NESTED = f"""
    {CONVOLUTIONS}  inner0 = Conv<pads=[1,1,1,1]>(f, w3)  q = ReduceMean<keepdims=1>(f, all)  step = Greater(q, zero)
    gi = Cast<to=1>(step)  mi = Mul(inner0, gi)  outer = Add(f, mi)
"""


def nested(batch: str | int = "N") -> onnx.ModelProto:
    """A block within a block; the inner one runs where the mean of what it reads is positive."""
    tail = "m = Mul(outer, g)  y = Add(x, m)"
    return residual(batch, block=NESTED, tail=tail, w3=normal(4, 4, 3, 3), all=np.array([1, 2, 3]))


def branches(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "If"]
