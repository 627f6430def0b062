"""Bounds hold for every input, and decide a gate exactly where the weights do."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from conditional_graphs import inferred, normal, run
from small_graphs import graph

from converters.conditional.bounds import Bounds, Interval


def interval(body: str, **constants: object) -> Interval:
    model = inferred(graph(f"(float[N,3,4,4] x) => (float[N,2] y) {{ {body} }}", **constants))
    return Bounds().of(ir.from_proto(model).graph.outputs[0])


HEAD = "p = GlobalAveragePool(x)  v = Flatten(p)  "
CASES: dict[str, tuple[str, dict[str, object]]] = {
    "sigmoid and weights": (HEAD + "s = Sigmoid(v)  y = Gemm(s, w, b)", {"w": normal(3, 2), "b": normal(2)}),
    "relu, clip, product": (
        HEAD + "c = Clip(v, lo, hi)  m = Mul(c, c)  r = Relu(m)  y = MatMul(r, w)",
        {"lo": np.float32(-0.5), "hi": np.float32(0.25), "w": normal(3, 2)},
    ),
    "convolution with padding": (
        "s = Sigmoid(x)  h = Conv<pads=[1,1,1,1]>(s, w, b)  p = GlobalAveragePool(h)  y = Flatten(p)",
        {"w": normal(2, 3, 3, 3), "b": normal(2)},
    ),
    "quotient and difference": (
        HEAD + "s = Sigmoid(v)  t = Add(s, one)  q = Div(s, t)  d = Sub(q, s)  y = MatMul(d, w)",
        {"one": np.float32(1), "w": normal(3, 2)},
    ),
    "tanh and padded windows": (
        "t = Tanh(x)  u = Add(t, two)  a = AveragePool<kernel_shape=[2,2],pads=[1,1,1,1],count_include_pad=1>(u)  "
        "m = ReduceMin<keepdims=0>(a, space)  y = MatMul(m, w)",
        {"two": np.float32(2), "space": np.array([2, 3]), "w": normal(3, 2)},
    ),
    "comparison": (
        HEAD + "s = HardSigmoid(v)  g = Greater(s, half)  c = Cast<to=1>(g)  y = MatMul(c, w)",
        {"half": np.float32(0.5), "w": normal(3, 2)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_no_input_leaves_the_bounds(case: str) -> None:
    body, constants = CASES[case]
    model = inferred(graph(f"(float[N,3,4,4] x) => (float[N,2] y) {{ {body} }}", **constants))
    found = Bounds().of(ir.from_proto(model).graph.outputs[0])
    assert np.isfinite(found.low).all()
    assert np.isfinite(found.high).all()
    for scale in (0.1, 1, 30):
        x = scale * normal(64, 3, 4, 4)
        (y,) = run(model, x=x)
        assert (y >= found.low).all()
        assert (y <= found.high).all()


def test_weights_of_zero_leave_the_bias() -> None:
    found = interval(HEAD + "y = Gemm(v, w, b)", w=np.zeros((3, 2), np.float32), b=np.array([-1, 2], np.float32))
    np.testing.assert_array_equal(found.low, [[-1, 2]])
    np.testing.assert_array_equal(found.high, [[-1, 2]])


@pytest.mark.parametrize(("bias", "number"), [(-4.0, 0.0), (0.0, None), (1.0, 1.0)])
def test_a_gate_is_decided_where_the_bias_outweighs_everything(bias: float, number: float | None) -> None:
    """sigmoid < 1 and weights 1, 1, -0.5: the sum lies between -0.5 and 2."""
    weight = np.array([[1], [1], [-0.5]], np.float32)
    body = HEAD + "s = Sigmoid(v)  l = Gemm(s, w, b)  g = Greater(l, zero)  y = Cast<to=1>(g)"
    found = interval(body, w=weight, b=np.array([bias], np.float32), zero=np.float32(0))
    assert found.number == number


def test_a_decision_that_rounding_could_turn_is_left_open() -> None:
    """The bias alone equals the largest sum of the rest but for one rounding."""
    body = HEAD + "s = Sigmoid(v)  l = Gemm(s, w, b)  g = Greater(l, zero)  y = Cast<to=1>(g)"
    bias = np.array([-3 * (1 + 2.0**-22)], np.float32)
    assert interval(body, w=np.ones((3, 1), np.float32), b=bias, zero=np.float32(0)).number is None


@pytest.mark.parametrize(("bias", "number"), [([3, -3], 0.0), ([-3, 3], 1.0), ([0, 0.5], None)])
def test_the_larger_of_two_logits_is_decided(bias: list[float], number: float | None) -> None:
    body = HEAD + "s = Sigmoid(v)  l = Gemm(s, w, b)  a = ArgMax<axis=1>(l)  y = Cast<to=1>(a)"
    found = interval(body, w=np.ones((3, 2), np.float32), b=np.array(bias, np.float32))
    # three sigmoids of weight 1 are between 0 and 3, for both logits
    assert found.number == (None if number is None or abs(bias[0] - bias[1]) <= 3 else number)


def test_an_unknown_operator_may_give_anything() -> None:
    found = interval(HEAD + "s = Sigmoid(v)  e = Sin(s)  y = MatMul(e, w)", w=normal(3, 2))
    assert (float(found.low.min()), float(found.high.max())) == (-np.inf, np.inf)
