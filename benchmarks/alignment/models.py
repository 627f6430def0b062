"""The models: a chain of convolutions with 63 of 64 channels open, and networks whose survivors are odd widths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

LAYERS, IMAGE = 8, 28
# of 64, 128, 256 ... channels 31, 63, 125 ... stay: hardly any is a multiple of a block
OPEN_SHARE = 0.49


def save_chain(folder: Path, *, channels: int = 64, open_channels: int = 63) -> Path:
    """Eight 3x3 convolutions on [N, channels, 28, 28]; behind each but the last all but `open_channels` are zero."""
    generator = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for layer in range(LAYERS):
        array = generator.standard_normal((channels, channels, 3, 3)) * (2 / (9 * channels)) ** 0.5
        if layer < LAYERS - 1:
            array[generator.permutation(channels)[open_channels:]] = 0
        weights.append(numpy_helper.from_array(array.astype(np.float32), f"layer{layer}.conv.weight"))
        names = [value, f"layer{layer}.conv.weight"]
        nodes += [
            helper.make_node("Conv", names, [f"conv{layer}"], f"node_conv{layer}", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"conv{layer}"], [f"relu{layer}"], f"node_relu{layer}"),
        ]
        value = f"relu{layer}"
    shape = ["N", channels, IMAGE, IMAGE]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)],
        weights,
    )
    path = folder / f"chain-{open_channels}-of-{channels}.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def save_network(name: str, folder: Path) -> Path:
    """A network of benchmarks/native_width, gated; needs torch, and torchvision or transformers for some."""
    from benchmarks.native_width.prepare import prepare_gated

    return prepare_gated(name, OPEN_SHARE, folder)
