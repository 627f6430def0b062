"""Operators that keep samples apart pass rows on, all others stop a block from running on some samples alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from conditional_graphs import inferred, normal
from small_graphs import graph

from converters.conditional.rows import PerSample, check_rows

W = normal(8, 8)


def verdict(body: str, **constants: object) -> PerSample | str:
    model = inferred(
        graph(f"(float[N,6,8] x, float[N,6,8] z, float[6,8] s) => (float[N,6,8] y) {{ {body} }}", **constants)
    )
    made = ir.from_proto(model)
    return check_rows(tuple(made.graph), made.graph.outputs[0], "N")


APART = {
    "elementwise": ("y = Add(x, z)", {}),
    "shared operand without a batch axis": ("y = Add(x, s)", {}),
    "weights": ("y = MatMul(x, w)", {"w": W}),
    "matrices of each sample": ("t = Transpose<perm=[0,2,1]>(z)  p = MatMul(x, t)  y = MatMul(p, x)", {}),
    "softmax": ("y = Softmax<axis=-1>(x)", {}),
    "normalisation": ("y = LayerNormalization<axis=-1>(x, g)", {"g": normal(8)}),
    "reduction": ("a = ReduceMean<keepdims=1>(x, one)  y = Sub(x, a)", {"one": np.array([1])}),
    "split and join": ("a, b = Split<axis=2>(x, parts)  y = Concat<axis=2>(b, a)", {"parts": np.array([4, 4])}),
    "slice": (
        "a = Slice(x, from, to, axis)  y = Concat<axis=1>(a, a)",
        dict(zip(("from", "to", "axis"), np.array([[0], [3], [1]]), strict=False)),
    ),
    "reading at indices": ("y = Gather<axis=1>(x, index)", {"index": np.array([5, 4, 3, 2, 1, 0])}),
    "padding": (
        "a = Pad(x, pads)  y = Slice(a, from, to, axis)",
        {"pads": np.array([0, 1, 0, 0, 0, 0]), "from": np.array([1]), "to": np.array([7]), "axis": np.array([1])},
    ),
    "reshape within a sample": (
        "a = Reshape(x, shape)  y = Transpose<perm=[0,2,1]>(a)",
        {"shape": np.array([0, 8, 6])},
    ),
    "image": (
        "a = Unsqueeze(x, last)  b = Conv(a, w)  y = Squeeze(b, last)",
        {"last": np.array([3]), "w": normal(6, 6, 1, 1)},
    ),
    "running sum": ("y = CumSum(x, axis)", {"axis": np.array(1)}),
}


@pytest.mark.parametrize("case", APART, ids=str)
def test_samples_are_kept_apart(case: str) -> None:
    body, constants = APART[case]
    assert isinstance(verdict(body, **constants), PerSample), verdict(body, **constants)


MIXING = {
    "shared operand with a batch axis of its own": (
        "t = Expand(s, three)  y = Add(x, t)",
        {"three": np.array([3, 6, 8])},
        "Add y",
    ),
    "softmax over the batch": ("y = Softmax<axis=0>(x)", {}, "Softmax y"),
    "normalisation over the batch": (
        "y = LayerNormalization<axis=0>(x, g)",
        {"g": normal(1, 6, 8)},
        "LayerNormalization y",
    ),
    "mean over the batch": (
        "a = ReduceMean<keepdims=1>(x, zero)  y = Sub(x, a)",
        {"zero": np.array([0])},
        "ReduceMean a",
    ),
    "mean over everything": ("a = ReduceMean<keepdims=1>(x)  y = Sub(x, a)", {}, "ReduceMean a"),
    "batch moved": ("y = Transpose<perm=[1,0,2]>(x)", {}, "Transpose y"),
    "samples in reverse order": (
        "y = Slice(x, from, to, axis, step)",
        dict(zip(("from", "to", "axis", "step"), np.array([[-1], [-99], [0], [-1]]), strict=False)),
        "Slice y",
    ),
    "first sample for all": ("a = Gather<axis=0>(x, first)  y = Add(x, a)", {"first": np.array(0)}, "Gather a"),
    "running sum over the batch": ("y = CumSum(x, axis)", {"axis": np.array(0)}, "CumSum y"),
    "statistics of all samples": (
        "y, a, b = BatchNormalization<training_mode=1>(x, g, g, g, v)",
        {"g": normal(6), "v": np.ones(6, np.float32)},
        "BatchNormalization y",
    ),
    "matrices that mix": ("t = Transpose<perm=[2,1,0]>(x)  y = Transpose<perm=[2,1,0]>(t)", {}, "Transpose t"),
}


@pytest.mark.parametrize("case", MIXING, ids=str)
def test_samples_are_mixed(case: str) -> None:
    body, constants, where = MIXING[case]
    assert verdict(body, **constants) == f"{where} mixes samples, or may"


def test_an_operator_without_a_rule_counts_as_mixing() -> None:
    found = verdict("q, scale, zero = DynamicQuantizeLinear(x)  y = DequantizeLinear(q, scale, zero)")
    assert found == "no rule says that DynamicQuantizeLinear q keeps samples apart"


def test_the_batch_size_itself_is_no_row() -> None:
    body = "n = Shape(x)  y = Expand(s, n)"
    assert str(verdict(body)).startswith("no rule says that Shape")


def test_shapes_are_written_anew_without_the_batch() -> None:
    found = verdict("a = Reshape(x, shape)  y = Transpose<perm=[0,2,1]>(a)", shape=np.array([0, 8, 6]))
    assert isinstance(found, PerSample)
    assert list(found.shapes.values()) == [(-1, 8, 6)]


def test_a_shape_as_torch_exports_it_keeps_samples_apart() -> None:
    """With -1 for the batch, and zeros in it that would mean empty axes."""
    body = "a = Reshape<allowzero=1>(x, shape)  y = Transpose<perm=[0,2,1]>(a)"
    found = verdict(body, shape=np.array([-1, 8, 6]))
    assert isinstance(found, PerSample)
    assert list(found.shapes.values()) == [(-1, 8, 6)]


def test_rows_that_are_taken_are_those_with_a_batch_axis() -> None:
    found = verdict("a = Add(x, s)  y = Add(a, z)")
    assert isinstance(found, PerSample)
    assert [value.name for value in found.taken] == ["x", "z"]
