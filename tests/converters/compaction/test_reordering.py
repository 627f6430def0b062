"""Rows of a layer in another order put the indices of its result in that order, or nothing changes."""

import numpy as np
import onnx.reference
import onnx_ir as ir
import pytest
from small_graphs import graph

from converters.compaction.reordering import reorder_rows

RNG = np.random.default_rng(0)
ORDER = np.array([2, 0, 3, 1])
X = RNG.normal(size=(3, 5))
HEAD = "(double[3,5] x) => (double[3,4] y)"


@pytest.mark.parametrize(
    "layer",
    [
        "h = MatMul(x, w)",
        "m = MatMul(x, w)  h = Add(b, m)",
        "m = MatMul(x, w)  n = Add(m, b)  h = Add(n, one)",
        "h = Gemm(x, w, b)",
        "h = Gemm<transB=1>(x, wt, b)",
    ],
)
def test_rows_bias_and_offsets_move_together(layer: str) -> None:
    numbers = {"w": RNG.normal(size=(5, 4)), "b": RNG.normal(size=4), "one": RNG.normal(size=(3, 1))}
    proto = graph(f"{HEAD} {{ {layer}  y = Identity(h) }}", **numbers, wt=RNG.normal(size=(4, 5)))
    (expected,) = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": X})
    model = ir.from_proto(proto)
    assert reorder_rows(model.graph, _value(model.graph), 1, ORDER)
    (found,) = onnx.reference.ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": X})
    np.testing.assert_array_equal(found, expected[:, ORDER])


@pytest.mark.parametrize(
    ("layer", "dim"),
    [
        ("m = MatMul(x, w)  h = Relu(m)", 1),
        ("m = MatMul(x, w)  h = Add(m, c)  z = Exp(m)", 1),
        ("h = MatMul(x, w)", 0),
    ],
    ids=["another operator", "another reader", "another dimension"],
)
def test_nothing_changes_where_the_rows_cannot_move(layer: str, dim: int) -> None:
    more = ", double[3,4] z" if "z =" in layer else ""
    text = f"{HEAD[:-1]}{more}) {{ {layer}  y = Identity(h) }}"
    model = ir.from_proto(graph(text, w=RNG.normal(size=(5, 4)), c=RNG.normal(size=4)))
    value, before = _value(model.graph), dict(model.graph.initializers)
    assert not reorder_rows(model.graph, value, dim, ORDER if dim else np.array([2, 0, 1]))
    assert dict(model.graph.initializers) == before


def _value(graph: ir.Graph) -> ir.Value:
    """The value h, with the shapes that every value has when the engine gets there."""
    for node in graph:
        node.outputs[0].shape = ir.Shape([3, 4])
    (last,) = [node for node in graph if node.op_type == "Identity"]
    source = last.inputs[0]
    assert source is not None
    return source
