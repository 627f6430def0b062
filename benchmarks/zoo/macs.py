"""How many multiply-accumulates does a model really do for given inputs?

Counted from the shapes that one run has, not from shape inference, which gives up on transformers with free sizes. The
operands and results of every contraction become extra outputs of a copy of the model, and onnxruntime runs it once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

_CONTRACTIONS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "Attention")


def macs_of_run(path: str, feeds: Mapping[str, np.ndarray]) -> tuple[int, list[str]]:
    """Multiply-accumulates of one run, and the contractions that were not counted."""
    import onnxruntime

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    shapes = {t.name: tuple(t.dims) for t in graph.initializer}
    nodes = [n for n in graph.node if n.op_type in _CONTRACTIONS]
    present = {o.name for o in graph.output}
    produced = {o for n in graph.node for o in n.output} - present
    wanted = sorted({v for n in nodes for v in [*n.input, n.output[0]] if v in produced})
    # only the shapes are fetched: a value itself could be large
    for name in wanted:
        shape = f"{name}__shape"
        graph.node.append(onnx.helper.make_node("Shape", [name], [shape]))
        graph.output.append(onnx.helper.make_tensor_value_info(shape, onnx.TensorProto.INT64, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # the external data is found beside the file
    probe = f"{path}.shapes.onnx"
    onnx.save(model, probe)
    session = onnxruntime.InferenceSession(probe, options, providers=["CPUExecutionProvider"])
    fetched = session.run([f"{name}__shape" for name in wanted], dict(feeds)) if wanted else []
    shapes |= {name: tuple(int(d) for d in value) for name, value in zip(wanted, fetched, strict=True)}
    shapes |= {name: value.shape for name, value in feeds.items()}
    missing = [o.name for o in graph.output if o.name in present and o.name not in shapes]
    if missing:
        for name, value in zip(missing, session.run(missing, dict(feeds)), strict=True):
            shapes[name] = value.shape
    total, uncounted = 0, []
    for node in nodes:
        try:
            total += _macs(node, shapes)
        except (KeyError, NotImplementedError):
            uncounted.append(f"{node.op_type} {node.name or node.output[0]}")
    return total, uncounted


def _macs(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    first, second, result = (shapes[node.input[0]], shapes[node.input[1]], shapes[node.output[0]])
    if node.op_type == "Conv":
        return math.prod(result) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    if node.op_type == "MatMul":
        return math.prod(result) * first[-1]
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return math.prod(result) * first[0 if transposed else 1]
    if node.op_type in ("LSTM", "GRU"):
        steps = first[0] * first[1]
        return int(steps * (math.prod(second) + math.prod(shapes[node.input[2]])))
    if node.op_type == "Einsum":
        return _einsum_macs(node, [shapes[i] for i in node.input])
    raise NotImplementedError(node.op_type)


def _einsum_macs(node: onnx.NodeProto, operands: list[tuple[int, ...]]) -> int:
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation").replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    if len(terms) != 2 or "." in equation:
        raise NotImplementedError(equation)
    sizes: dict[str, Any] = {}
    for term, shape in zip(terms, operands, strict=True):
        sizes |= dict(zip(term, shape, strict=True))
    return math.prod(sizes.values())
