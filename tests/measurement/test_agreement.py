"""Models that compute something else are not compared: the check itself must be able to fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import l0runtime
from l0runtime.errors import InputError, VerificationError
from l0runtime.measurement.agreement import check_same_inputs, compare_outputs, relative_difference
from l0runtime.sample_inputs import sample_inputs

HEADER = '<ir_version: 8, opset_import: ["": 17]>'


def session(text: str) -> l0runtime.Session:
    return l0runtime.load(onnx.parser.parse_model(f"{HEADER} {text}").SerializeToString(), device="cpu")


def test_equal_functions_agree_within_rounding(wide: Path, narrow: Path) -> None:
    a, b = l0runtime.load(wide, device="cpu"), l0runtime.load(narrow, device="cpu")
    agreement = compare_outputs(a, b, sample_inputs(wide, batch=5))
    assert agreement.output == "y"
    assert agreement.difference < 1e-6


def test_an_output_one_percent_off_is_refused(wide: Path, other: Path) -> None:
    a, b = l0runtime.load(wide, device="cpu"), l0runtime.load(other, device="cpu")
    with pytest.raises(VerificationError) as caught:
        compare_outputs(a, b, sample_inputs(wide, batch=5))
    assert str(caught.value) == (
        "output 'y': differs by 0.01 of its scale, allowed is 0.0001. "
        "The two models do not compute the same; their times are not compared."
    )


def test_integers_must_be_equal_and_shapes_and_dtypes_too() -> None:
    x = {"x": np.array([3, 4])}
    same = session("g (int64[N] x) => (int64[N] y) { y = Neg (x) }")
    with pytest.raises(VerificationError, match=r"^output 'y': differs by inf of its scale, allowed is 0\."):
        compare_outputs(same, session("g (int64[N] x) => (int64[N] y) { y = Identity (x) }"), x)
    with pytest.raises(VerificationError, match=r"^output 'y': int64 \[2\] against float32 \[2\]\."):
        compare_outputs(same, session("g (int64[N] x) => (float[N] y) { y = Cast <to=1> (x) }"), x)


def test_different_inputs_are_refused() -> None:
    a = session("g (float[N] x) => (float[N] y) { y = Neg (x) }")
    b = session("g (float[N] z) => (float[N] y) { y = Neg (z) }")
    with pytest.raises(InputError) as caught:
        check_same_inputs(a, b)
    assert str(caught.value) == (
        "the two models take different inputs: x: float32 [N] against z: float32 [N]. "
        "Compare a compact model with the model it was made from."
    )


def test_outputs_of_other_names_are_compared_by_position() -> None:
    a = session("g (float[N] x) => (float[N] y) { y = Neg (x) }")
    b = session("g (float[N] x) => (float[N] q) { q = Neg (x) }")
    assert compare_outputs(a, b, {"x": np.ones(3, np.float32)}).difference == 0


@pytest.mark.parametrize(
    ("expected", "found", "difference"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [1.5, -4.0], 0.125),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 0.0], [0.0, 1e-9], np.inf),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.nan, 1.0], [0.0, 1.0], np.inf),
        ([np.inf, 1.0], [-np.inf, 1.0], np.inf),
        ([np.nan], [np.nan], 0.0),
    ],
)
def test_relative_difference_by_hand(expected: list[float], found: list[float], difference: float) -> None:
    assert relative_difference(np.array(expected), np.array(found)) == difference
