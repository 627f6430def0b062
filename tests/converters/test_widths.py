"""Layers are found by their weights and paired before and after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx_ir as ir
import pytest

from converters.compaction import compact
from converters.widths import LayerWidth, WidthChange, compare_widths, layer_widths, zero_channels


def one_node(operator: str, shape: list[int], *, weight_first: bool = False, **attributes: int) -> ir.Model:
    names = ["layer.weight", "x"] if weight_first else ["x", "layer.weight"]
    weight = np.ones(shape, np.float32)
    weight[..., 0] = 0
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, names, ["y"], "node", **attributes)],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(weight, "layer.weight")],
    )
    return ir.from_proto(onnx.helper.make_model(graph))


@pytest.mark.parametrize(
    ("model", "inputs", "outputs", "groups"),
    [
        (one_node("Conv", [8, 3, 5, 5]), 3, 8, 1),
        (one_node("Conv", [8, 2, 3, 3], group=4), 8, 8, 4),
        (one_node("ConvTranspose", [3, 8, 5, 5]), 3, 8, 1),
        (one_node("ConvTranspose", [8, 2, 3, 3], group=4), 8, 8, 4),
        (one_node("Gemm", [3, 8]), 3, 8, 1),
        (one_node("Gemm", [8, 3], transB=1), 3, 8, 1),
        (one_node("MatMul", [3, 8]), 3, 8, 1),
        (one_node("MatMul", [7, 3, 8]), 3, 8, 1),
        (one_node("MatMul", [8, 3], weight_first=True), 3, 8, 1),
    ],
)
def test_inputs_and_outputs_are_read_from_the_weight(model: ir.Model, inputs: int, outputs: int, groups: int) -> None:
    (found,) = layer_widths(model)
    assert (found.layer, found.inputs, found.outputs, found.groups) == ("layer", inputs, outputs, groups)


def test_a_compaction_shows_as_narrower_layers(mlp: Path) -> None:
    changes = compare_widths(ir.load(mlp), compact(ir.load(mlp)).model)
    # 6 hidden units with gates 1, 0, 0.5, 0, 0.25, 1
    assert [
        (c.before.outputs, c.after and c.after.outputs, c.before.inputs, c.after and c.after.inputs) for c in changes
    ] == [
        (6, 4, 5, 5),
        (3, 3, 6, 4),
    ]


def test_a_layer_that_went_has_no_width_after(mlp: Path) -> None:
    empty = ir.load(mlp)
    for node in list(empty.graph):
        if node.name == "fc1":
            node.outputs[0].replace_all_uses_with(empty.graph.inputs[0])
            empty.graph.remove(node)
    first, second = compare_widths(ir.load(mlp), empty)
    assert first == WidthChange(LayerWidth("fc1", "Gemm", 5, 6), None)
    assert second.after == second.before


def test_channels_of_exact_zeros_are_counted_on_both_sides() -> None:
    ((width, inputs, outputs),) = zero_channels(one_node("Gemm", [8, 3], transB=1))
    assert (width.layer, inputs, outputs) == ("layer", 1, 0)
    ((_, inputs, outputs),) = zero_channels(one_node("MatMul", [3, 8]))
    assert (inputs, outputs) == (0, 1)
