"""Is a Gather put in front of a weighted sum exactly where the cost model says that it pays?"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_graphs import LIMIT, compacted, difference, graph, operators, shapes

RNG = np.random.default_rng(0)


def gated_inputs(inputs: int, used: int, outputs: int) -> onnx.ModelProto:
    gate = np.zeros(inputs)
    gate[np.sort(RNG.permutation(inputs)[:used])] = RNG.uniform(0.1, 1, used)
    return graph(
        f"(double[N,{inputs}] x) => (double[N,{outputs}] y) {{ g = Mul(x, z)  y = Gemm(g, w, b) }}",
        z=gate,
        w=RNG.standard_normal((inputs, outputs)),
        b=RNG.standard_normal(outputs),
    )


def test_gated_inputs_of_a_wide_layer_are_taken_by_a_gather() -> None:
    model = gated_inputs(784, 219, 219)
    compact, result = compacted(model)
    assert operators(compact) == ["Gather", "Gemm"]
    assert sorted(shapes(compact).values()) == [(219,), (219,), (219, 219)]  # indices, bias, weight
    assert difference(model, compact, x=RNG.standard_normal((3, 784))) < LIMIT
    (selected,) = result.plan.selected
    assert (selected.value, selected.axis, selected.width, len(selected.indices)) == ("x", 1, 784, 219)
    assert str(selected) == "x[1]: Mul g takes 219 of 784 indices by a Gather"
    assert result.plan.to_json()["selected"] == [
        {"value": "x", "axis": 1, "node": selected.node, "width": 784, "indices": list(selected.indices)}
    ]


@pytest.mark.parametrize(
    ("inputs", "used", "outputs"),
    [(64, 32, 64), (784, 600, 219), (784, 219, 10)],
    ids=["too small for one more node", "too little left out", "too few outputs"],
)
def test_no_gather_where_copying_costs_more_than_it_saves(inputs: int, used: int, outputs: int) -> None:
    model = gated_inputs(inputs, used, outputs)
    compact, result = compacted(model)
    assert operators(compact) == ["Gemm"]
    assert result.plan.selected == ()
    assert difference(model, compact, x=RNG.standard_normal((3, inputs))) < LIMIT


def test_readers_with_the_same_needs_share_one_gather() -> None:
    used = np.arange(0, 512, 4)
    weight = np.zeros((512, 256))
    weight[used] = RNG.standard_normal((used.size, 256))
    model = graph(
        "(double[N,512] x) => (double[N,256] y, double[N,256] v) { y = MatMul(x, w1)  v = MatMul(x, w2) }",
        w1=weight,
        w2=2 * weight,
    )
    compact, result = compacted(model)
    assert operators(compact) == ["Gather", "MatMul", "MatMul"]
    assert len(result.plan.selected) == 2
    assert difference(model, compact, x=RNG.standard_normal((2, 512))) < LIMIT


def test_readers_with_different_needs_get_their_own_channels() -> None:
    """Two branches read opposite halves of a joined tensor that an output keeps whole."""
    w1, w2 = RNG.standard_normal((64, 128, 1, 1)), RNG.standard_normal((64, 128, 1, 1))
    w1[:, :64], w2[:, 64:] = 0, 0
    model = graph(
        """(double[N,3,14,14] x) => (double[N,128,14,14] j, double[N,64,14,14] y, double[N,64,14,14] v) {
            j = Conv(x, w0)  r = Relu(j)  y = Conv(r, w1)  s = Sigmoid(j)  v = Conv(s, w2)
        }""",
        w0=RNG.standard_normal((128, 3, 1, 1)),
        w1=w1,
        w2=w2,
    )
    compact, _ = compacted(model)
    # the Gather stands above the activation, which then works on half of the channels
    assert operators(compact) == ["Conv", "Gather", "Relu", "Conv", "Gather", "Sigmoid", "Conv"]
    assert difference(model, compact, x=RNG.standard_normal((2, 3, 14, 14))) < LIMIT


def test_wrong_indices_are_caught() -> None:
    model = gated_inputs(784, 219, 219)
    compact, _ = compacted(model)
    for tensor in compact.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64:
            shifted = (onnx.numpy_helper.to_array(tensor) + 1) % 784
            tensor.CopyFrom(onnx.numpy_helper.from_array(shifted, tensor.name))
    assert difference(model, compact, x=RNG.standard_normal((3, 784))) > 0.1
