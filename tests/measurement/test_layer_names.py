"""Nodes of the optimised graph are traced back to the layers of the file, or to none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from l0runtime.measurement.layer_names import LayerNames, LayerOfFile
from l0runtime.measurement.profiling import Peaks, profile_model

CHANNELS = 17  # a blocked convolution computes 32


def network() -> onnx.ModelProto:
    """Convolution, ReLU, convolution, pooling and a linear layer, with the names that torch's exporter gives."""
    weights = {
        "layer1.0.conv1.weight": (CHANNELS, 3, 3, 3),
        "layer1.0.conv2.weight": (CHANNELS, CHANNELS, 3, 3),
        "fc.weight": (10, CHANNELS),
    }
    nodes = [
        helper.make_node("Conv", ["x", "layer1.0.conv1.weight"], ["conv2d"], "node_conv2d"),
        helper.make_node("Relu", ["conv2d"], ["relu"], "node_relu"),
        helper.make_node("Conv", ["relu", "layer1.0.conv2.weight"], ["conv2d_1"], "node_conv2d_1"),
        helper.make_node("Relu", ["conv2d_1"], ["relu_1"], "node_relu_1"),
        helper.make_node("GlobalAveragePool", ["relu_1"], ["pooled"], "node_pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "node_flatten"),
        helper.make_node("Gemm", ["flat", "fc.weight"], ["linear"], "node_linear", transB=1),
        helper.make_node("Relu", ["linear"], ["y"], "node_relu_2"),
    ]
    generator = np.random.default_rng(0)
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [
            numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)
            for name, shape in weights.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# outputs 6 x 6 and 4 x 4
MACS = {
    "layer1.0.conv1": CHANNELS * 36 * 27,
    "layer1.0.conv2": CHANNELS * 16 * 9 * CHANNELS,
    "fc": 10 * CHANNELS,
}
BYTES = {"layer1.0.conv1": 4 * CHANNELS * 27, "layer1.0.conv2": 4 * CHANNELS * 9 * CHANNELS, "fc": 4 * 10 * CHANNELS}


@pytest.mark.parametrize(
    ("profiled", "layer"),
    [
        ("node_conv2d", "layer1.0.conv1"),
        ("relu_nchwc", "layer1.0.conv1"),  # called after the value behind the ReLU
        ("conv2d_1_nchwc", "layer1.0.conv2"),
        ("fused node_linear", "fc"),
        ("node_linear/MatMulScaleFusion/", "fc"),
        ("node_linear_token_5", "fc"),
    ],
)
def test_what_fusion_renamed_is_found(profiled: str, layer: str) -> None:
    assert LayerNames(network(), {"x": (1, 3, 8, 8)}).find(profiled) == LayerOfFile(layer, MACS[layer], BYTES[layer])


@pytest.mark.parametrize("profiled", ["node_pool", "ReorderOutput_token_3", "pooled_bn_nchwc", "unknown"])
def test_what_is_no_layer_of_the_file_is_not_called_one(profiled: str) -> None:
    assert LayerNames(network(), {"x": (1, 3, 8, 8)}).find(profiled) is None


def test_an_addition_of_two_branches_is_not_traced() -> None:
    model = network()
    model.graph.node.append(helper.make_node("Add", ["relu_1", "conv2d_1"], ["sum"], "node_add"))
    assert LayerNames(model, {"x": (1, 3, 8, 8)}).find("sum_nchwc") is None


def test_without_a_module_s_name_the_node_s_own_is_taken() -> None:
    model = network()
    for node in model.graph.node:
        node.input[:] = ["w" if name == "fc.weight" else name for name in node.input]
    for tensor in model.graph.initializer:
        tensor.name = "w" if tensor.name == "fc.weight" else tensor.name
    found = LayerNames(model, {"x": (1, 3, 8, 8)}).find("fused node_linear")
    assert found == LayerOfFile("node_linear", MACS["fc"], BYTES["fc"])


def test_torch_s_record_of_scopes_names_a_layer_whose_weight_was_renamed() -> None:
    model = network()
    for node in model.graph.node:
        node.input[:] = ["val_46" if name == "fc.weight" else name for name in node.input]
        if node.name == "node_linear":
            entry = node.metadata_props.add()
            entry.key, entry.value = "pkg.torch.onnx.name_scopes", "['', 'head', 'head.fc', 'linear']"
    names = LayerNames(model, {"x": (1, 3, 8, 8)})
    # no weight: an activation might be both factors, of which a module may hold several
    assert names.name_of(model.graph.node[6]) == "head.fc: node_linear"
    for tensor in model.graph.initializer:
        tensor.name = "val_46" if tensor.name == "fc.weight" else tensor.name
    assert LayerNames(model, {"x": (1, 3, 8, 8)}).name_of(model.graph.node[6]) == "head.fc"
    model.graph.node[6].metadata_props[0].value = "['', "
    assert LayerNames(model, {"x": (1, 3, 8, 8)}).name_of(model.graph.node[6]) == "node_linear"


def test_a_real_profile_counts_the_layers_own_work_not_that_of_full_blocks(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    onnx.save(network(), path)
    feed = {"x": np.ones((2, 3, 8, 8), np.float32)}
    nodes = profile_model(path, feed, Peaks(1e9, 1e9), device="cpu", threads=1)
    assert {node.layer: node.macs for node in nodes if node.macs} == {name: 2 * macs for name, macs in MACS.items()}
    # onnxruntime keeps the linear layer's weight re-ordered and does not count it: 2 x 17 inputs, 2 x 10 outputs
    assert {node.layer: node.bytes for node in nodes}["fc"] == BYTES["fc"] + 4 * (2 * CHANNELS + 2 * 10)


def test_a_rewritten_weight_leaves_the_layer_its_name_in_the_model_before() -> None:
    shapes = {"x": (1, 3, 8, 8)}
    before, model = network(), network()
    model.graph.node[2].input[1] = "conv2d_1_compact0"
    assert LayerNames(model, shapes).name_of(model.graph.node[2]) == "node_conv2d_1"
    like = LayerNames(before, shapes)
    assert LayerNames(model, shapes, like=like).name_of(model.graph.node[2]) == "layer1.0.conv2"
