"""Random inputs fit the model's specs, and indices stay inside the tables they read."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from l0runtime.errors import InputError, UnsupportedModelError
from l0runtime.sample_inputs import input_specs, integer_bounds, resolve_shapes, sample_inputs

HEADER = '<ir_version: 8, opset_import: ["": 17]>'
TOKENS = """g (int64[N,L] ids, int64[N,L] mask, bool[N] flag, float[N,3] x) => (float[N,L,2] y)
<float[5,2] table={0,1,2,3,4,5,6,7,8,9}> {
    c = Cast <to=6> (ids)
    u = Identity (c)
    y = Gather (table, u)
}"""


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f"{HEADER} {text}")


def test_token_ids_stay_below_the_length_of_the_table_behind_a_cast() -> None:
    model = parse(TOKENS)
    assert integer_bounds(model) == {"ids": 5}
    ids = sample_inputs(model, batch=64, dims={"L": 16})["ids"]
    assert ids.dtype == np.int64
    assert set(np.unique(ids)) == {0, 1, 2, 3, 4}


def test_the_least_table_bounds_an_input_that_indexes_two() -> None:
    model = parse(
        """g (int64[N] i) => (float[N] y) <float[5] a={0,1,2,3,4}, float[3] b={0,1,2}> {
            p = Gather (a, i)
            q = Gather (b, i)
            y = Add (p, q)
        }"""
    )
    assert integer_bounds(model) == {"i": 3}


def test_the_gathered_axis_decides_the_bound() -> None:
    model = parse("g (int64[N] i) => (float[2,N] y) <float[2,3] a={0,1,2,3,4,5}> { y = Gather <axis=1> (a, i) }")
    assert integer_bounds(model) == {"i": 3}


def test_data_of_a_gather_is_no_index() -> None:
    model = parse("g (int64[4] i) => (int64 y) <int64 k={1}> { y = Gather (i, k) }")
    assert integer_bounds(model) == {}


def test_masks_are_zero_or_one_bools_are_bools_and_floats_have_both_signs() -> None:
    arrays = sample_inputs(parse(TOKENS), batch=50, dims={"L": 4})
    assert set(np.unique(arrays["mask"])) == {0, 1}
    assert arrays["flag"].dtype == np.bool_
    assert set(np.unique(arrays["flag"])) == {False, True}
    assert arrays["x"].dtype == np.float32
    assert arrays["x"].shape == (50, 3)
    assert arrays["x"].min() < -1
    assert arrays["x"].max() > 1


def test_a_given_bound_overrides_and_the_seed_repeats() -> None:
    model = parse(TOKENS)
    first = sample_inputs(model, batch=8, dims={"L": 4}, bounds={"mask": 9}, seed=3)
    again = sample_inputs(model, batch=8, dims={"L": 4}, bounds={"mask": 9}, seed=3)
    other = sample_inputs(model, batch=8, dims={"L": 4}, bounds={"mask": 9}, seed=4)
    assert first["mask"].max() > 1
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["x"], other["x"])


def test_a_whole_shape_decides_the_batch_of_the_other_inputs() -> None:
    shapes = resolve_shapes(parse(TOKENS), batch=1, shapes={"ids": [7, 2]})
    assert shapes == {"ids": (7, 2), "mask": (7, 2), "flag": (7,), "x": (7, 3)}


def test_initializers_listed_as_inputs_are_not_fed() -> None:
    model = parse("g (float[N,2] x, float[2] b) => (float[N,2] y) { y = Add (x, b) }")
    model.graph.initializer.append(onnx.helper.make_tensor("b", 1, [2], [1.0, 2.0]))
    assert [(spec.name, spec.shape) for spec in input_specs(model)] == [("x", ("N", 2))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"shapes": {"z": [1]}},
            "shape given for 'z': the model's inputs are 'flag', 'ids', 'mask', 'x'.",
        ),
        ({"dims": {"Q": 1}}, "size given for dimension 'Q': the model's dynamic dimensions are 'L', 'N'."),
        ({"shapes": {"x": [2, 4]}}, "shape given for 'x': found [2, 4], expected [N, 3]."),
        ({"shapes": {"x": [2]}}, "shape given for 'x': found [2], expected [N, 3]."),
        (
            {"shapes": {"x": [2, 3], "flag": [1]}},
            "shape given for 'flag': found [1], expected [N] with N = 2.",
        ),
        (
            {},
            "input 'ids': dimension 1 (L) is dynamic and has no size. "
            "Give the size L=N or the whole shape, such as ids=1x1.",
        ),
        ({"dims": {"L": 1}, "bounds": {"x": 3}}, "bound given for 'x': the model's integer inputs are 'ids', 'mask'."),
        ({"dims": {"L": 1}, "bounds": {"ids": 0}}, "bound given for 'ids': found 0, expected at least 1."),
    ],
)
def test_contradictions_are_refused_with_what_was_expected(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        sample_inputs(parse(TOKENS), **arguments)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_strings_have_no_random_values() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        sample_inputs(parse("g (string[N] s) => (string[N] y) { y = Identity (s) }"))
    assert str(caught.value) == "input 's': no random values for dtype object. Give the arrays yourself."
