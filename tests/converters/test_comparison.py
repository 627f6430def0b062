"""Differences are taken of the output's scale, and nothing odd counts as equal."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx_ir as ir
import pytest
from small_models import make_mlp

from converters.comparison import Difference, compare, compare_all, largest, rounding_limit

ONES = np.ones((2, 3), np.float32)


def relative(reference: np.ndarray, other: np.ndarray) -> float:
    return compare("y", "x 2x3", reference, other).relative


def test_the_difference_is_relative_to_the_largest_absolute_value_of_the_reference() -> None:
    assert relative(np.array([1.0, -4.0]), np.array([1.5, -4.0])) == 0.125


def test_the_reason_names_the_place_and_both_values() -> None:
    found = compare("y", "x 1x2", np.array([[1.0, -4.0]]), np.array([[1.5, -4.0]]))
    assert found == Difference("y", "x 1x2", 0.125, "1 became 1.5 at [0, 0], scale 4")


@pytest.mark.parametrize(
    ("reference", "other", "reason"),
    [
        (ONES, ONES[:1], "shape [2, 3] became [1, 3]"),
        (ONES, ONES * np.nan, "the compact model gives NaN in 6 of 6 values"),
        (ONES * np.nan, ONES * np.nan, "the gated model gives NaN in 6 of 6 values"),
        (ONES, ONES * np.inf, "infinities differ, 1 became inf at [0, 0]"),
        (ONES * np.inf, -ONES * np.inf, "infinities differ, inf became -inf at [0, 0]"),
        (np.array([1, 2]), np.array([1, 3]), "1 of 2 values differ, 2 became 3 at [1]"),
        (np.array([True]), np.array([False]), "1 of 1 values differ, True became False at [0]"),
        (ONES * 0, ONES * 1e-30, "0 became 1e-30 at [0, 0], scale 0"),
    ],
)
def test_what_must_be_equal_and_is_not_differs_infinitely(
    reference: np.ndarray, other: np.ndarray, reason: str
) -> None:
    found = compare("y", "x 2x3", reference, other)
    assert (found.relative, found.reason) == (math.inf, reason)


def test_equal_infinities_integers_and_empty_outputs_are_equal() -> None:
    masks = np.array([0.0, -np.inf])
    assert relative(masks, masks) == 0
    assert relative(np.array([3, 4]), np.array([3, 4])) == 0
    assert relative(np.zeros((0, 3)), np.zeros((0, 3))) == 0


def test_bfloat16_is_compared_as_floating_point() -> None:
    assert relative(np.array([2], ml_dtypes.bfloat16), np.array([1], ml_dtypes.bfloat16)) == 0.5


def test_a_missing_output_is_a_difference() -> None:
    (found,) = compare_all(["a", "b"], "x 1", [ONES, ONES], [ONES])
    assert (found.relative, found.reason) == (math.inf, "2 outputs became 1")


def test_the_largest_difference_wins() -> None:
    assert largest([Difference("a", "", 0.1), Difference("b", "", 0.3), Difference("c", "", 0.2)]).output == "b"


def test_the_limit_follows_the_longest_sum() -> None:
    limit = rounding_limit(ir.from_proto(make_mlp((1.0,) * 400, inputs=100)))
    assert limit.relative == 2.0**-23 * 20  # sqrt(400) terms in fc2
    assert limit.reason == "rounding of float32 sums of up to 400 terms, epsilon * sqrt(terms)"


def test_no_limit_is_tighter_than_that_of_64_terms() -> None:
    assert rounding_limit(ir.from_proto(make_mlp())).relative == 2.0**-23 * 8


@pytest.mark.parametrize(
    ("operator", "attributes", "shape", "terms"),
    [
        ("Conv", {}, [7, 30, 3, 3], 270),
        ("Conv", {"group": 4}, [8, 8, 3, 3], 72),
        ("ConvTranspose", {}, [30, 7, 3, 3], 270),
        ("MatMul", {}, [100, 7], 100),
        ("MatMul", {}, [5, 100, 7], 100),
        ("Gemm", {}, [100, 7], 100),
        ("Gemm", {"transB": 1}, [7, 100], 100),
    ],
)
def test_terms_are_counted_along_the_contracted_axes(
    operator: str, attributes: dict[str, int], shape: list[int], terms: int
) -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, ["x", "w"], ["y"], **attributes)],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.zeros(shape, np.float32), "w")],
    )
    limit = rounding_limit(ir.from_proto(onnx.helper.make_model(graph)))
    assert limit.reason == f"rounding of float32 sums of up to {terms} terms, epsilon * sqrt(terms)"


def test_half_precision_has_a_limit_of_its_own() -> None:
    model = make_mlp()
    model.graph.input[0].type.tensor_type.elem_type = 10  # float16
    limit = rounding_limit(ir.from_proto(model))
    assert (limit.dtype, limit.relative) == ("float16", 2.0**-10 * 8)
