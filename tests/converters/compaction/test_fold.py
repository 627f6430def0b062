"""Gate values that survive disappear into the weights around them, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from converters_graphs import operators, parse, run

from converters.compaction import compact

RNG = np.random.default_rng(0)


def array(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def folded(text: str, weights: dict[str, np.ndarray], **inputs: np.ndarray) -> list[str]:
    before, after = parse(text, weights), compact(parse(text, weights)).model
    assert [value.name for value in after.graph.outputs] == [value.name for value in before.graph.outputs]
    for now, then in zip(run(after, **inputs), run(before, **inputs), strict=True):
        # float32 rounding of sums of at most 27 terms of size 1
        np.testing.assert_allclose(now, then, rtol=1e-4, atol=1e-4)
    return operators(after)


SCALE = np.array([0.5, 1.5, 0.25, 2.0], np.float32)


@pytest.mark.parametrize("activation", ["Relu", "Abs"])
def test_a_positive_scale_moves_back_through_a_homogeneous_function(activation: str) -> None:
    text = f"""m (float[N, 3] x) => (float[N, 2] y) {{
        a = MatMul(x, w) b = Add(a, b1) c = {activation}(b) d = Mul(c, z) e = Sigmoid(d) y = MatMul(e, v) }}"""
    weights = {"w": array(3, 4), "b1": array(4), "z": SCALE, "v": array(4, 2)}
    assert folded(text, weights, x=array(5, 3)) == ["MatMul", "Add", activation, "Sigmoid", "MatMul"]


def test_a_scale_between_two_curved_functions_stays() -> None:
    text = """m (float[N, 3] x) => (float[N, 2] y) {
        a = MatMul(x, w) c = Sigmoid(a) d = Mul(c, z) e = Sigmoid(d) y = MatMul(e, v) }"""
    weights = {"w": array(3, 4), "z": SCALE, "v": array(4, 2)}
    assert folded(text, weights, x=array(5, 3)) == ["MatMul", "Sigmoid", "Mul", "Sigmoid", "MatMul"]


def test_a_negative_scale_does_not_pass_a_relu() -> None:
    text = """m (float[N, 3] x) => (float[N, 2] y) {
        a = MatMul(x, w) c = Relu(a) d = Mul(c, z) e = Sigmoid(d) y = MatMul(e, v) }"""
    weights = {"w": array(3, 4), "z": -SCALE, "v": array(4, 2)}
    assert "Mul" in folded(text, weights, x=array(5, 3))


def test_a_scale_follows_its_axis_through_a_transpose_and_a_difference() -> None:
    text = """m (float[N, 5, 3] x) => (float[N, 4, 5] y) {
        a = MatMul(x, w) t = Transpose<perm = [0, 2, 1]>(a) s = Sub(k, t) d = Mul(s, z) y = Sigmoid(d) }"""
    weights = {"w": array(3, 4), "k": array(4, 1), "z": SCALE.reshape(4, 1)}
    assert folded(text, weights, x=array(2, 5, 3)) == ["MatMul", "Transpose", "Sub", "Sigmoid"]


def test_an_offset_that_stretches_the_value_keeps_the_scale() -> None:
    text = """m (float[N, 3] x) => (float[5, 4] y) {
        a = MatMul(x, w) s = Add(a, k) d = Mul(s, z) y = Sigmoid(d) }"""
    weights = {"w": array(3, 4), "k": array(5, 4), "z": SCALE}
    assert folded(text, weights, x=array(1, 3)) == ["MatMul", "Add", "Mul", "Sigmoid"]


BATCH_NORM = {"g": array(4), "b": array(4), "m": array(4), "v": np.array([0.5, 1.0, 2.0, 0.1], np.float32)}


@pytest.mark.parametrize("bias", ["", ", cb"])
def test_a_batch_norm_behind_a_conv_becomes_part_of_it_even_as_the_output(bias: str) -> None:
    text = f"""m (float[N, 3, H, W] x) => (float[N, 4, H, W] y) {{
        c = Conv<pads = [1, 1, 1, 1]>(x, w{bias}) y = BatchNormalization(c, g, b, m, v) }}"""
    weights = {"w": array(4, 3, 3, 3), **BATCH_NORM} | ({"cb": array(4)} if bias else {})
    assert folded(text, weights, x=array(2, 3, 5, 6)) == ["Conv"]


def test_a_batch_norm_behind_a_conv_that_others_read_stays() -> None:
    text = """m (float[N, 3, H, W] x) => (float[N, 4, H, W] y, float[N, 4, H, W] z) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w) y = BatchNormalization(c, g, b, m, v) z = Neg(c) }"""
    weights = {"w": array(4, 3, 3, 3), **BATCH_NORM}
    assert folded(text, weights, x=array(2, 3, 5, 6)) == ["Conv", "BatchNormalization", "Neg"]


def test_a_tied_weight_is_not_doubled_to_save_a_scale() -> None:
    text = """m (float[N, 4] x) => (float[N, 4] y) {
        a = MatMul(x, w) b = Sigmoid(a) c = Mul(b, z) d = MatMul(c, w) y = Sigmoid(d) }"""
    assert "Mul" in folded(text, {"w": array(4, 4), "z": SCALE}, x=array(5, 4))
