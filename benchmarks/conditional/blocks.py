"""What is measured: residual blocks with a gate each, masked and conditional, with gates that fire at a chosen rate."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

from converters import convert
from l0runtime.gates import ConditionalResNet
from l0runtime.gates.conditional import ConditionalGate

INPUT = "x"
Array = NDArray[np.float32]


def convert_blocks(
    folder: Path, *, width: int = 64, blocks: int = 8, hidden: int = 16, size: int = 32, batch: int | None = None
) -> None:
    """Write masked.onnx and conditional.onnx of a network of one stage of conditional residual blocks.

    Args:
        folder: where to.
        width, blocks, hidden: channels, number of blocks, hidden units of each gate.
        size: height and width of the image.
        batch: the only batch size; None for any.
    """
    torch.manual_seed(0)
    net = ConditionalResNet(channels=3, widths=(width,), blocks=blocks, hidden=hidden).eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, ConditionalGate):
                module.last.weight.normal_(0, 1)
                module.last.bias.normal_(0, 1)  # equal ones would be stored once
            if isinstance(module, torch.nn.BatchNorm2d):  # activations stay of order one through all blocks
                module.weight.fill_(0.5)
    example = (torch.randn(batch or 2, 3, size, size),)
    axes: dict[int, object] = {} if batch is not None else {0: torch.export.Dim("batch")}
    convert(
        net,
        folder / "conditional.onnx",
        example_inputs=example,
        dynamic_shapes=(axes,),
        gated_output=folder / "gated.onnx",
    )
    _write_masked(folder)


def _write_masked(folder: Path) -> None:
    """What the gated file is after compaction, without branches: the fair opponent."""
    from converters.compaction import compact

    ir.save(compact(ir.load(folder / "gated.onnx")).model, folder / "masked.onnx")


def logits(proto: onnx.ModelProto) -> list[tuple[str, str]]:
    """(bias initializer, result) of the last layer of each gate, in graph order."""
    return [
        (node.input[2], node.output[0])
        for node in proto.graph.node
        if node.op_type == "Gemm" and node.input[2].endswith("gate.last.bias")
    ]


def calibrate(proto: onnx.ModelProto, x: Array, rate: float) -> dict[str, Array]:
    """Biases with which each gate fires for that share of the samples, block after block."""
    model = copy.deepcopy(proto)
    found: dict[str, Array] = {}
    for bias, result in logits(model):
        del model.graph.output[:]
        model.graph.output.append(onnx.helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, None))
        set_biases(model, found | {bias: np.zeros(1, np.float32)})
        (values,) = session(model).run(None, {model.graph.input[0].name: x})
        ordered = np.sort(values.reshape(-1))[::-1]
        fires = round(rate * len(ordered))
        edges = np.concatenate([[ordered[0] + 1], ordered, [ordered[-1] - 1]])
        found[bias] = np.array([-(edges[fires] + edges[fires + 1]) / 2], np.float32)
    return found


def set_biases(proto: onnx.ModelProto, biases: dict[str, Array]) -> None:
    """Overwrite initializers of the main graph by name."""
    for tensor in proto.graph.initializer:
        if tensor.name in biases:
            tensor.CopyFrom(onnx.numpy_helper.from_array(biases[tensor.name], tensor.name))


def skeleton(masked: onnx.ModelProto) -> onnx.ModelProto:
    """The network without its blocks but with all gates: what no conditional execution can save.

    The product with the gate is replaced by the gate itself, broadcast over one pixel, so that nothing is left out.
    """
    model = copy.deepcopy(masked)
    for node in model.graph.node:
        if node.op_type == "Mul":
            gate = next(name for name in node.input if not _is_image(model, name))
            node.op_type = "Identity"
            del node.input[:]
            node.input.append(gate)
    del model.graph.value_info[:]  # the shapes of the sums were those of images
    pruned = ir.from_proto(model)
    passes.RemoveUnusedNodesPass()(pruned)
    return ir.to_proto(pruned)


def _is_image(model: onnx.ModelProto, name: str) -> bool:
    shape = next(value.type.tensor_type.shape for value in model.graph.value_info if value.name == name)
    return shape.dim[1].dim_value > 1


def session(proto: onnx.ModelProto) -> ort.InferenceSession:
    """One thread, everything optimised."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
