"""The parts of a joint projection are split in front of its views, and compute the same."""

import numpy as np
import pytest
from small_graphs import LIMIT, compacted, difference, graph, operators

RNG = np.random.default_rng(0)


def joint(views: str, readers: str, result: str = "double[N,2,5,3] y", **constants: object):
    """x [N, 5, 4] times a weight [4, 18] = 3 parts * 2 heads * 3 features, views of it and its readers."""
    return graph(
        f"(double[N,5,4] x) => ({result}) {{ a = MatMul(x, w)  {views}  {readers} }}",
        w=RNG.normal(size=(4, 18)),
        **constants,
    )


PARTS_FIRST = "r = Reshape(a, shape)  t = Transpose<perm=[2,0,3,1,4]>(r)"
SHAPE = np.array([0, 5, 3, 2, 3])
SLICES = "p = Slice(t, zero, one, zero)  q = Slice(t, one, three, zero)  s = ReduceSum<keepdims=0>(q, zero)"
BOUNDS = {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "three": np.array([3])}


def test_ranges_of_different_length_are_split_in_front_of_the_views() -> None:
    model = joint(PARTS_FIRST, f"{SLICES}  u = Squeeze(p, zero)  y = Add(u, s)", shape=SHAPE, **BOUNDS)
    compact, _ = compacted(model)
    found = operators(compact)
    assert found.count("Split") == 1
    assert "Slice" not in found
    assert difference(model, compact, x=RNG.normal(size=(2, 5, 4))) < LIMIT


def test_parts_between_which_one_is_never_read_lose_its_rows() -> None:
    readers = "p = Gather<axis=0>(t, first)  q = Gather<axis=0>(t, last)  y = Add(p, q)"
    model = joint(PARTS_FIRST, readers, shape=SHAPE, first=np.array(0), last=np.array(-1))
    compact, _ = compacted(model)
    assert {tuple(tensor.dims) for tensor in compact.graph.initializer if tensor.name == "w"} == {(4, 12)}
    assert difference(model, compact, x=RNG.normal(size=(2, 5, 4))) < LIMIT


@pytest.mark.parametrize(
    "readers",
    [
        "p = Slice(t, zero, two, zero)  q = Slice(t, one, three, zero)  s = Add(p, q)  y = ReduceSum<keepdims=0>(s, i)",
        "p = Gather<axis=0>(t, index)  s = Exp(t)  u = Gather<axis=0>(s, index)  y = Add(p, u)",
    ],
    ids=["ranges that overlap", "a reader of the whole"],
)
def test_other_readers_keep_the_views_in_front(readers: str) -> None:
    model = joint(PARTS_FIRST, readers, shape=SHAPE, index=np.array(1), i=np.array([0]), **BOUNDS)
    compact, _ = compacted(model)
    assert "Split" not in operators(compact)
    assert difference(model, compact, x=RNG.normal(size=(2, 5, 4))) < LIMIT


def test_parts_inside_the_heads_of_a_value_that_others_read_stay_there() -> None:
    views = "r = Reshape(a, shape)  t = Transpose<perm=[0,2,1,3]>(r)"
    readers = "p, q, s = Split<axis=3, num_outputs=3>(t)  u = Add(p, q)  y = Mul(u, s)  z = Exp(a)"
    model = joint(views, readers, "double[N,2,5,3] y, double[N,5,18] z", shape=np.array([0, 5, 2, 9]))
    compact, _ = compacted(model)
    assert operators(compact).count("Transpose") == 1
    assert difference(model, compact, x=RNG.normal(size=(2, 5, 4))) < LIMIT
