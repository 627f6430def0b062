"""Does the normal form believe no more about a file than it says?"""

from __future__ import annotations

import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from rule_case import build, difference, sizes

from converters.compaction import compact
from converters.compaction.normalise import fold_constants

R = np.random.default_rng(5)
X = R.normal(size=(2, 5, 6)).astype(np.float32)


def swapped_and_back(name: str) -> onnx.ModelProto:
    """Rows and columns change places, and the shape that they had before is written over them."""
    model = build(
        """(float[A,B,6] x) => (float[P,Q,3] y) {
            t = Transpose<perm=[1,0,2]>(x)
            s = Shape(x)
            a = Slice(s, nought, one)
            b = Slice(s, one, two)
            c = Concat<axis=0>(a, b, eight)
            h = MatMul(t, w1)
            g = Mul(h, gate)
            m = Reshape(g, c)
            y = MatMul(m, w2)
        }""",
        nought=[0], one=[1], two=[2], eight=[8], gate=np.float32([1, 0, 1, 1, 0, 1, 1, 1]),
        w1=R.normal(size=(6, 8)).astype(np.float32), w2=R.normal(size=(8, 3)).astype(np.float32),
    )  # fmt: skip
    for dim in model.graph.input[0].type.tensor_type.shape.dim[:2]:
        dim.dim_param = name
    return model


@pytest.mark.parametrize("name", ["?", "None", "unknown"])
def test_sizes_that_share_a_placeholder_need_not_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = swapped_and_back(name)
    assert difference(model, X) < 1e-6
    # by way of sys.modules, because the package has a function of the same name as this module
    monkeypatch.setattr(sys.modules["converters.compaction.normalise"], "_is_placeholder", lambda text: False)
    with pytest.raises(ValueError, match="broadcast"):
        difference(model, X)


def test_the_names_of_inputs_and_outputs_come_back() -> None:
    model = ir.to_proto(compact(ir.from_proto(swapped_and_back("?"))).model)
    assert [d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim] == ["?", "?", ""]
    assert sizes(model) == [(6, 3), (6, 6)]


def folded(body: str, **weights: np.ndarray | list[int]) -> list[str]:
    """Operator types that are left of a graph after its constants were evaluated."""
    model = ir.from_proto(build(body, **weights))
    fold_constants(model.graph)
    return [node.op_type for node in model.graph]


# 700 x 700 floats, more than a constant may grow by, made from 700
TABLE = {"row": R.normal(size=(1, 700)).astype(np.float32), "column": R.normal(size=(700, 1)).astype(np.float32)}


def test_what_is_evaluated_on_the_way_may_be_large() -> None:
    body = """(float[N,700] x) => (float[N,700] y) {
            t = Mul(column, row)  b = ReduceMax<keepdims=0>(t, nought)  y = Add(x, b)
        }"""
    assert folded(body, nought=[0], **TABLE) == ["Mul", "Add"]  # nobody reads the product any more


@pytest.mark.parametrize("last", ["Neg(t)", "Transpose<perm=[1,0]>(t)", "Identity(t)"])
def test_a_constant_that_is_much_larger_than_its_source_is_not_written_out(last: str) -> None:
    body = f"(float[N,700] x) => (float[N,700] y) {{ t = Mul(column, row) u = {last} y = MatMul(x, u) }}"
    assert folded(body, **TABLE) == ["Mul", last.partition("(")[0].partition("<")[0], "MatMul"]
