"""Operators that keep samples apart pass rows on, all others stop a block from running on some samples alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from conditional_graphs import evaluate, inferred, normal
from small_graphs import graph

from converters.compaction.shape_inference import infer_missing_shapes
from converters.conditional.rows import PerSample, check_rows

W = normal(8, 8)


def verdict(body: str, **constants: object) -> PerSample | str:
    model = graph(f"(float[N,6,8] x, float[N,6,8] z, float[6,8] s) => (float[N,6,8] y) {{ {body} }}", **constants)
    made = ir.from_proto(model)
    infer_missing_shapes(made)
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
    "batch moved and back": ("t = Transpose<perm=[2,1,0]>(x)  y = Transpose<perm=[2,1,0]>(t)", {}),
    "queries, keys and values in one": (
        """a = Reshape(x, heads)  t = Transpose<perm=[2,0,3,1,4]>(a)
        q = Gather<axis=0>(t, zero)  r = Slice(t, one, two, first)  k = Squeeze(r, first)
        kt = Transpose<perm=[0,1,3,2]>(k)  scores = MatMul(q, kt)  p = Softmax(scores)  o = MatMul(p, k)
        u = Transpose<perm=[0,2,1,3]>(o)  v = Reshape(u, half)  y = Concat<axis=2>(v, v)""",
        {
            "heads": np.array([0, 6, 2, 2, 2]),
            "zero": np.array(0),
            "one": np.array([1]),
            "two": np.array([2]),
            "first": np.array([0]),
            "half": np.array([0, 6, 4]),
        },
    ),
    "sequence first, heads beside the samples": (
        """l = Transpose<perm=[1,0,2]>(x)  a = Reshape(l, apart)  h = Transpose<perm=[1,0,2]>(a)
        ht = Transpose<perm=[0,2,1]>(h)  scores = MatMul(h, ht)  p = Softmax(scores)  o = MatMul(p, h)
        b = Transpose<perm=[1,0,2]>(o)  c = Reshape(b, flat)  d = MatMul(c, w)  e = Reshape(d, back)
        y = Transpose<perm=[1,0,2]>(e)""",
        {"apart": np.array([6, -1, 4]), "flat": np.array([-1, 8]), "w": W, "back": np.array([6, -1, 8])},
    ),
    "an axis in front": (
        "a = Unsqueeze(x, first)  b = Concat<axis=0>(a, a)  c = ReduceSum<keepdims=0>(b, first)  y = Add(c, s)",
        {"first": np.array([0])},
    ),
    "norm behind the batch, moved": (
        "t = Transpose<perm=[1,0,2]>(x)  n = LayerNormalization<axis=-1>(t, g)  y = Transpose<perm=[1,0,2]>(n)",
        {"g": normal(8)},
    ),
    "a shared matrix for each position": (
        "t = Transpose<perm=[1,0,2]>(x)  m = MatMul(t, each)  y = Transpose<perm=[1,0,2]>(m)",
        {"each": normal(6, 8, 8)},
    ),
    "the largest of another axis": (
        "t = Transpose<perm=[1,0,2]>(x)  i = ArgMax<axis=0,keepdims=0>(t)  f = Cast<to=1>(i)  "
        "u = Unsqueeze(f, one)  y = Add(x, u)",
        {"one": np.array([1])},
    ),
}


@pytest.mark.parametrize("case", APART, ids=str)
def test_samples_are_kept_apart(case: str) -> None:
    body, constants = APART[case]
    assert isinstance(verdict(body, **constants), PerSample), verdict(body, **constants)


@pytest.mark.parametrize("case", APART, ids=str)
def test_some_samples_alone_give_what_they_give_among_others(case: str) -> None:
    """The verdict above against the reference evaluator of ONNX."""
    body, constants = APART[case]
    model = graph(f"(float[N,6,8] x, float[N,6,8] z, float[6,8] s) => (float[N,6,8] y) {{ {body} }}", **constants)
    feed = {"x": normal(5, 6, 8), "z": normal(5, 6, 8), "s": normal(6, 8)}
    (whole,) = evaluate(model, **feed)
    for rows in ([3], [4, 0], [1, 2, 3]):
        (some,) = evaluate(model, x=feed["x"][rows], z=feed["z"][rows], s=feed["s"])
        np.testing.assert_allclose(some, whole[rows], rtol=1e-5, atol=1e-5)  # float32 sums in another order


def test_a_batch_that_stays_elsewhere_is_no_result() -> None:
    assert verdict("y = Transpose<perm=[1,0,2]>(x)") == "its result y does not hold one row per sample"


def test_the_places_of_maxima_count_from_the_first_sample() -> None:
    found = verdict("m, i = MaxPool<kernel_shape=[1]>(x)  f = Cast<to=1>(i)  y = Add(m, f)")
    assert found == "MaxPool m mixes samples, or may"
    assert isinstance(verdict("m, i = MaxPool<kernel_shape=[1]>(x)  y = Relu(m)"), PerSample)


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
    "matrices that mix": (
        "t = Transpose<perm=[1,2,0]>(x)  u = Transpose<perm=[1,0,2]>(z)  p = MatMul(t, u)  y = MatMul(x, p)",
        {},
        "MatMul p",
    ),
    "a mean over the batch, moved": (
        "t = Transpose<perm=[1,0,2]>(x)  a = ReduceMean<keepdims=0>(t, one)  y = Sub(x, a)",
        {"one": np.array([1])},
        "ReduceMean a",
    ),
    "a norm over the batch, moved": (
        "t = Transpose<perm=[1,0,2]>(x)  n = LayerNormalization<axis=1>(t, g)  y = Transpose<perm=[1,0,2]>(n)",
        {"g": normal(1, 8)},
        "LayerNormalization n",
    ),
    "a view across samples": (
        "a = Reshape(x, shape)  y = Reshape(a, back)",
        {"shape": np.array([4, -1, 8]), "back": np.array([-1, 6, 8])},
        "Reshape a",
    ),
    "images beside each other": (
        "t = Transpose<perm=[1,2,0]>(x)  a = Conv(t, w)  y = Transpose<perm=[2,0,1]>(a)",
        {"w": normal(8, 8, 1)},
        "Conv a",
    ),
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
    assert {str(value.name): axis for value, axis in found.taken.items()} == {"x": 0, "z": 0}


def test_rows_are_taken_along_the_axis_that_is_the_batch() -> None:
    model = inferred(graph("(float[6,N,8] x) => (float[N,6,8] y) { y = Transpose<perm=[1,0,2]>(x) }"))
    made = ir.from_proto(model)
    found = check_rows(tuple(made.graph), made.graph.outputs[0], "N")
    assert isinstance(found, PerSample)
    assert {str(value.name): axis for value, axis in found.taken.items()} == {"x": 1}
