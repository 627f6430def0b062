"""Does torch's ONNX exporter trace gated networks into plain operators with exact zeros in them?"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from torch import nn

from l0runtime.gates import GatedConv2d, GatedLinear, GatedVGG, LeNet5, WideResNet, gated_layers
from l0runtime.gates.evaluation import RULES, EvaluationRule

PLAIN = {"Conv", "Mul", "Relu", "MaxPool", "Gemm", "Reshape", "Add", "BatchNormalization", "ReduceMean", "Transpose"}


def export(model: nn.Module, x: torch.Tensor) -> onnx.ModelProto:
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(model.eval(), (x,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    assert program is not None
    return program.model_proto


def randomise_gates(model: nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in gated_layers(model).values():
            layer.gate.log_alpha.normal_(-1, 3)


# the exporter's own use of a deprecated pytree test
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (LeNet5(filters=(3, 4), hidden=7), (1, 28, 28)),
        (GatedVGG(channels=1, stages=((4,), (6,))), (1, 8, 8)),
        (WideResNet(depth=10, widen=1), (3, 16, 16)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_gates_become_constants_in_a_graph_of_plain_operators(model: nn.Module, shape: tuple[int, ...]) -> None:
    randomise_gates(model)
    x = torch.randn(3, *shape)
    proto = export(model, x)
    assert {node.op_type for node in proto.graph.node} <= PLAIN
    initializers = {item.name: onnx.numpy_helper.to_array(item) for item in proto.graph.initializer}
    factors = [
        initializers[name].ravel()
        for node in proto.graph.node
        if node.op_type == "Mul"
        for name in node.input
        if name in initializers
    ]
    expected = [layer.gate.values().detach().numpy() for layer in gated_layers(model).values()]
    assert len(factors) == len(expected)
    for found, values in zip(factors, expected, strict=True):
        np.testing.assert_array_equal(found == 0, values == 0)
        np.testing.assert_allclose(found, values, atol=1e-6)
    for batch in (1, 4):
        x = torch.randn(batch, *shape)
        (output,) = onnx.reference.ReferenceEvaluator(proto).run(None, {proto.graph.input[0].name: x.numpy()})
        with torch.no_grad():
            expected_output = model(x).numpy()
        # float32 sums of a few hundred terms in another order
        np.testing.assert_allclose(output, expected_output, rtol=1e-4, atol=1e-4 * np.abs(expected_output).max())


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_exports_to_the_same_function(rule: EvaluationRule) -> None:
    model = nn.Sequential(GatedConv2d(1, 9, 3, rule=rule), nn.ReLU(), nn.Flatten(), GatedLinear(36, 4, rule=rule))
    randomise_gates(model)
    proto = export(model, torch.randn(2, 1, 4, 4))
    x = torch.randn(5, 1, 4, 4)
    (output,) = onnx.reference.ReferenceEvaluator(proto).run(None, {proto.graph.input[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(output, model(x).numpy(), atol=1e-5)
