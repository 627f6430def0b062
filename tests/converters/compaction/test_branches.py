"""Do dead and constant branches disappear, without useless chains of width 1 and without changing anything?"""

from __future__ import annotations

import numpy as np
import onnx
from small_graphs import LIMIT, compacted, difference, graph, operators, shapes

RNG = np.random.default_rng(1)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def test_part_of_a_concat_of_which_nothing_stays_is_dropped() -> None:
    w3 = normal(2, 8)
    w3[:, 4:] = 0  # nobody reads the second part
    model = graph(
        """(double[N,6] x) => (double[N,2] y) {
            a = Gemm<transB=1>(x, w1)  b0 = Gemm<transB=1>(x, w2)  b = Tanh(b0)
            c = Concat<axis=1>(a, b)   y = Gemm<transB=1>(c, w3)
        }""",
        w1=normal(4, 6),
        w2=normal(4, 6),
        w3=w3,
    )
    compact, _ = compacted(model)
    assert operators(compact) == ["Gemm", "Gemm"]
    assert sorted(shapes(compact).values()) == [(2, 4), (4, 6)]
    assert difference(model, compact, x=normal(3, 6)) < LIMIT


def test_part_of_a_concat_that_something_else_keeps_stays() -> None:
    w3 = normal(2, 8)
    w3[:, 4:] = 0
    model = graph(
        """(double[N,6] x) => (double[N,2] y, double[N,4] b) {
            a = Gemm<transB=1>(x, w1)  b = Gemm<transB=1>(x, w2)
            c = Concat<axis=1>(a, b)   y = Gemm<transB=1>(c, w3)
        }""",
        w1=normal(4, 6),
        w2=normal(4, 6),
        w3=w3,
    )
    compact, _ = compacted(model)
    assert "b" in [value.name for value in compact.graph.output]
    assert difference(model, compact, x=normal(3, 6)) < LIMIT


def test_branch_that_adds_zero_disappears_with_its_add() -> None:
    model = graph(
        """(double[N,6] x) => (double[N,2] y) {
            a = Gemm<transB=1>(x, w1)  b0 = Gemm<transB=1>(x, w2)  b = Mul(b0, zero)
            s = Add(a, b)  y = Gemm<transB=1>(s, w3)
        }""",
        w1=normal(4, 6),
        w2=normal(4, 6),
        zero=np.zeros(4),
        w3=normal(2, 4),
    )
    compact, result = compacted(model)
    assert operators(compact) == ["Gemm", "Gemm"]
    assert [str(replaced) for replaced in result.plan.replaced] == [
        "b: the same for every input, replaced by a constant in front of Add s"
    ]
    assert difference(model, compact, x=normal(3, 6)) < LIMIT


def test_closed_hidden_layer_leaves_a_constant_in_the_residual_sum() -> None:
    model = graph(
        """(double[N,4] x) => (double[N,2] y) {
            a = Relu(x)
            h0 = Gemm<transB=1>(a, w1, b1)  h1 = Mul(h0, zero)  h = Sigmoid(h1)
            b = Gemm<transB=1>(h, w2, b2)
            s = Add(a, b)  y = Gemm<transB=1>(s, w3)
        }""",
        w1=normal(8, 4),
        b1=normal(8),
        zero=np.zeros(8),
        w2=normal(4, 8),
        b2=normal(4),
        w3=normal(2, 4),
    )
    compact, _ = compacted(model)
    assert operators(compact) == ["Relu", "Add", "Gemm"]
    assert sorted(shapes(compact).values()) == [(1, 4), (2, 4)]
    assert difference(model, compact, x=normal(3, 4)) < LIMIT


def test_model_whose_output_is_constant_reads_only_the_batch_size() -> None:
    model = graph(
        """(double[N,4] x) => (double[N,2] y) {
            h0 = Gemm<transB=1>(x, w1)  h1 = Mul(h0, zero)  h = Sigmoid(h1)  y = Gemm<transB=1>(h, w2, b2)
        }""",
        w1=normal(8, 4),
        zero=np.zeros(8),
        w2=normal(2, 8),
        b2=normal(2),
    )
    compact, _ = compacted(model)
    assert operators(compact) == ["Shape", "Concat", "Expand"]
    for batch in (1, 5):
        assert difference(model, compact, x=normal(batch, 4)) < LIMIT


def test_operand_that_alone_gives_the_output_its_shape_is_not_replaced() -> None:
    """b is constant, but a is one row: without b the sum would have one row."""
    model = graph(
        """(double[1,4] x, double[N,4] v) => (double[N,4] y) {
            a = Tanh(x)  b0 = Mul(v, zero)  b = Sigmoid(b0)  y = Add(a, b)
        }""",
        zero=np.zeros(4),
    )
    compact, _ = compacted(model)
    assert difference(model, compact, x=normal(1, 4), v=normal(5, 4)) < LIMIT


def test_wrong_constant_is_caught() -> None:
    model = graph(
        """(double[N,4] x) => (double[N,4] y) {
            h0 = Gemm<transB=1>(x, w1)  h1 = Mul(h0, zero)  h = Sigmoid(h1)  y = Add(x, h)
        }""",
        w1=normal(4, 4),
        zero=np.zeros(4),
    )
    compact, _ = compacted(model)
    x = normal(3, 4)
    assert difference(model, compact, x=x) < LIMIT
    (constant,) = compact.graph.initializer
    constant.CopyFrom(onnx.numpy_helper.from_array(np.full(4, 0.5 + 1e-6), constant.name))
    assert difference(model, compact, x=x) > LIMIT
