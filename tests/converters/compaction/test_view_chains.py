"""Chains of views come back as a Gather, a split, a Transpose and a merge, and compute the same."""

import numpy as np
import pytest
from converters_graphs import operators, parse, run
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from converters.compaction.rewrite import remove_dead_nodes
from converters.compaction.shape_inference import infer_missing_shapes
from converters.compaction.shapes import complete_shapes
from converters.compaction.view_chains import canonicalise_view_chains

RNG = np.random.default_rng(0)


def canonical(text: str, **inputs: np.ndarray) -> list[str]:
    model, before = parse(text), parse(text)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    infer_missing_shapes(model)
    complete_shapes(model.graph)
    canonicalise_view_chains(model.graph)
    remove_dead_nodes(model.graph)
    for now, then in zip(run(model, **inputs), run(before, **inputs), strict=True):
        np.testing.assert_array_equal(now, then)
    return operators(model)


def test_a_transposition_through_a_merged_batch_and_head_dimension_is_one_transpose() -> None:
    text = """m (float[batch, 4, seq, 16] x) => (float[batch, 4, 16, seq] y) {
        s = Constant<value = int64[3] {-1, 5, 16}>()
        r = Reshape(x, s)
        t = Transpose<perm = [0, 2, 1]>(r)
        q = Constant<value = int64[4] {-1, 4, 16, 5}>()
        v = Reshape(t, q)
        y = Neg(v) }"""
    text = text.replace("seq", "5")
    assert canonical(text, x=RNG.standard_normal((2, 4, 5, 16), np.float32)) == ["Transpose", "Neg"]


def test_a_channel_shuffle_is_one_gather() -> None:
    text = """m (float[batch, 6, 3, 3] x) => (float[batch, 6, 3, 3] y) {
        s = Constant<value = int64[5] {0, 2, 3, 3, 3}>()
        r = Reshape(x, s)
        t = Transpose<perm = [0, 2, 1, 3, 4]>(r)
        q = Constant<value = int64[4] {0, 6, 3, 3}>()
        v = Reshape(t, q)
        y = Neg(v) }"""
    assert canonical(text, x=RNG.standard_normal((2, 6, 3, 3), np.float32)) == ["Gather", "Neg"]


@pytest.mark.parametrize("repeats_before_heads", [False, True])
def test_repeated_key_value_heads_are_one_gather(repeats_before_heads: bool) -> None:
    axis, shape = (1, "2, 3, 2") if repeats_before_heads else (2, "2, 2, 3")
    text = f"""m (float[2, 2, 5] x) => (float[2, 6, 5] y) {{
        a = Constant<value = int64[1] {{{axis}}}>()
        u = Unsqueeze(x, a)
        s = Constant<value = int64[4] {{{shape}, 5}}>()
        e = Expand(u, s)
        q = Constant<value = int64[3] {{2, 6, 5}}>()
        v = Reshape(e, q)
        y = Neg(v) }}"""
    assert canonical(text, x=RNG.standard_normal((2, 2, 5), np.float32)) == ["Gather", "Neg"]


def test_heads_that_are_split_moved_and_repeated_take_one_gather() -> None:
    text = """m (float[batch, 5, 6] x) => (float[batch, 4, 5, 3] y) {
        s = Constant<value = int64[4] {0, 5, 2, 3}>()
        r = Reshape(x, s)
        t = Transpose<perm = [0, 2, 1, 3]>(r)
        a = Constant<value = int64[1] {2}>()
        u = Unsqueeze(t, a)
        b = Constant<value = int64[5] {1, 2, 2, 5, 3}>()
        e = Expand(u, b)
        q = Constant<value = int64[4] {0, 4, 5, 3}>()
        v = Reshape(e, q)
        y = Neg(v) }"""
    expected = ["Reshape", "Transpose", "Gather", "Neg"]
    assert canonical(text, x=RNG.standard_normal((2, 5, 6), np.float32)) == expected


def test_windows_keep_their_split_transpose_and_merge() -> None:
    text = """m (float[batch, 8, 8, 5] x) => (float[n, 16, 5] y) {
        s = Constant<value = int64[6] {-1, 2, 4, 2, 4, 5}>()
        r = Reshape(x, s)
        t = Transpose<perm = [0, 1, 3, 2, 4, 5]>(r)
        q = Constant<value = int64[3] {-1, 16, 5}>()
        v = Reshape(t, q)
        y = Neg(v) }"""
    assert canonical(text, x=RNG.standard_normal((3, 8, 8, 5), np.float32)) == [
        "Reshape",
        "Transpose",
        "Reshape",
        "Neg",
    ]


def test_a_chain_whose_intermediate_value_is_read_elsewhere_ends_there() -> None:
    text = """m (float[2, 6] x) => (float[2, 3, 2] y, float[3, 2, 2] z) {
        s = Constant<value = int64[3] {2, 3, 2}>()
        r = Reshape(x, s)
        y = Neg(r)
        t = Transpose<perm = [1, 0, 2]>(r)
        z = Neg(t) }"""
    assert canonical(text, x=RNG.standard_normal((2, 6), np.float32)) == ["Reshape", "Neg", "Transpose", "Neg"]


def test_pieces_of_two_dimensions_that_are_merged_crosswise_stay_exact() -> None:
    text = """m (float[4, 6] x) => (float[6, 4] y) {
        s = Constant<value = int64[4] {2, 2, 3, 2}>()
        r = Reshape(x, s)
        t = Transpose<perm = [2, 0, 3, 1]>(r)
        q = Constant<value = int64[2] {6, 4}>()
        v = Reshape(t, q)
        y = Neg(v) }"""
    assert canonical(text, x=RNG.standard_normal((4, 6), np.float32)) == ["Reshape", "Transpose", "Reshape", "Neg"]


def test_a_chain_that_stays_as_it_is_gets_no_other_reader() -> None:
    """Such a reader would keep alive a branch that nothing needs any more."""
    model = parse("""m (float[8, 7, 4] x) => (float[14, 16] y) {
        n = Neg(x)
        t = Transpose<perm = [1, 0, 2]>(n)
        s = Constant<value = int64[2] {14, 16}>()
        r = Reshape(t, s)
        y = Neg(r) }""")
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    infer_missing_shapes(model)
    canonicalise_view_chains(model.graph)
    assert operators(model) == ["Neg", "Transpose", "Reshape", "Neg"]
    value = next(iter(model.graph)).outputs[0]
    assert [use.node.op_type for use in value.uses()] == ["Transpose"]
