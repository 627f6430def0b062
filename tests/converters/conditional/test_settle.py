"""A gate that the weights decide is no gate: its block goes, or runs always."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conditional_graphs import normal, residual, run

from converters.compaction import compact
from converters.conditional import has_conditional_blocks, settle_gates
from converters.conditional.settle import Settled


def gated(weight: float, bias: float, tail: str = "m = Mul(f, g)  y = Add(x, m)") -> onnx.ModelProto:
    """The gate fires where weight * mean(x) + bias > 0."""
    return residual(
        gate="p = ReduceMean<keepdims=1>(x, all)  a = Mul(p, weight)  l = Add(a, bias)  c = Greater(l, zero)"
        "  g = Cast<to=1>(c)",
        tail=tail,
        all=np.array([1, 2, 3]),
        weight=np.float32(weight),
        bias=np.float32(bias),
    )


def converted(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[Settled, ...]]:
    made = ir.from_proto(model)
    settled = settle_gates(made)
    return ir.to_proto(compact(made).model), settled


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_a_gate_that_never_fires_removes_its_block() -> None:
    model = gated(0, -1)
    found, settled = converted(model)
    assert settled == (Settled("f", fires=False),)
    assert operators(found) == ["Add"]  # of zero, since y is an output of the model
    x = normal(3, 4, 5, 5)
    np.testing.assert_array_equal(run(found, x=x, k=x[:, :1, :1, :1])[0], x)


def test_a_gate_that_always_fires_becomes_static() -> None:
    model = gated(0, 1)
    found, settled = converted(model)
    assert settled == (Settled("f", fires=True),)
    assert operators(found) == ["Conv", "Relu", "Conv", "Add"]
    feed = {"x": normal(3, 4, 5, 5), "k": normal(3, 1, 1, 1)}
    np.testing.assert_array_equal(run(found, **feed)[0], run(model, **feed)[0])


def test_a_gate_that_depends_on_the_input_stays() -> None:
    found, settled = converted(gated(1, 0))
    assert settled == ()
    assert has_conditional_blocks(ir.from_proto(found))


@pytest.mark.parametrize("bias", [-1, 1])
@pytest.mark.parametrize("tail", ["y = Where(c, f, x)", "y = Where(c, x, f)"])
def test_a_selection_that_is_decided_keeps_one_branch(tail: str, bias: float) -> None:
    model = gated(0, bias, tail)
    found, settled = converted(model)
    runs = (bias > 0) == (tail == "y = Where(c, f, x)")
    assert settled == (Settled("f", fires=runs),)
    assert ("Conv" in operators(found)) == runs
    feed = {"x": normal(3, 4, 5, 5), "k": normal(3, 1, 1, 1)}
    np.testing.assert_array_equal(run(found, **feed)[0], run(model, **feed)[0])


def test_what_was_settled_is_reported() -> None:
    assert Settled("a", fires=True).note() == "a: its gate fires for every input, so it runs unconditionally"
    assert Settled("a", fires=False).note() == "a: its gate fires for no input, so it was removed"
