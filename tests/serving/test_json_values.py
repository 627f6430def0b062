"""JSON becomes exactly the tensor it says, or is refused."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l0runtime.serving.failures import RequestError
from l0runtime.serving.json_values import (
    array_from_json,
    dumps_with_non_finite,
    is_finite,
    json_values,
    may_hold_booleans,
    parse_json,
)


def read(data: object, dtype: Any, shape: list[int]) -> np.ndarray[Any, Any]:
    """The tensor, read in the way of documents without booleans and in that of others, which must agree."""
    how: dict[str, Any] = {"name": "x", "data": data, "dtype": np.dtype(dtype), "shape": shape}
    how["count"] = int(np.prod(shape))
    found = array_from_json(**how)
    if not may_hold_booleans(json.dumps(data).encode()):
        packed = array_from_json(**how, may_hold_booleans=False)
        assert (packed.dtype, packed.shape, packed.tobytes()) == (found.dtype, found.shape, found.tobytes())
    return found


@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]]])
def test_values_may_be_flat_or_nested_as_the_shape(data: object) -> None:
    array = read(data, np.int16, [2, 3])
    assert array.dtype == np.int16
    assert array.tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("data", "dtype", "shape", "message"),
    [
        ([1.5], np.int32, [1], "input 'x': 'data' holds 1.5, expected whole numbers."),
        ([1.0], np.int32, [1], "input 'x': 'data' holds 1.0, expected whole numbers."),
        ([True, 2], np.int32, [2], "input 'x': 'data' holds True, expected whole numbers."),
        ([0, True], np.float32, [2], "input 'x': 'data' holds True, expected numbers."),
        ([1], np.bool_, [1], "input 'x': 'data' holds 1, expected true or false."),
        (["1"], np.float32, [1], "input 'x': 'data' holds '1', expected numbers."),
        ([None], np.float32, [1], "input 'x': 'data' holds None, expected numbers."),
        ([{}], np.float64, [1], "input 'x': 'data' holds {}, expected numbers."),
        ([300], np.int8, [1], "input 'x': 'data' holds a value beyond the range of int8."),
        ([-1], np.uint64, [1], "input 'x': 'data' holds a value beyond the range of uint64."),
        ([2**63], np.int64, [1], "input 'x': 'data' holds a value beyond the range of int64."),
        ([1e39], np.float32, [1], "input 'x': 'data' holds a value beyond the range of float32."),
        ([65520.0], np.float16, [1], "input 'x': 'data' holds a value beyond the range of float16."),
        ([1e39], ml_dtypes.bfloat16, [1], "input 'x': 'data' holds a value beyond the range of bfloat16."),
        ([10**400], np.float64, [1], "input 'x': 'data' holds a value beyond the range of float64."),
        ([1, 2], np.int8, [3], "input 'x': 'data' holds 2 values, shape [3] has 3."),
        ([[1], [2]], np.int8, [1, 2], "input 'x': 'data' has 2 rows, shape [1, 2] has 1."),
        ([[1, 2], [3]], np.int8, [2, 2], "input 'x': 'data' is not nested as its shape [2, 2]."),
        ([[1, 2], 3], np.int8, [2, 2], "input 'x': 'data' is not nested as its shape [2, 2]."),
        ([[[1]]], np.int8, [1, 1], "input 'x': 'data' holds [1], expected whole numbers."),
        ({"a": 1}, np.int8, [1], "input 'x': 'data' is {'a': 1}, expected a list."),
        (7, np.int8, [1], "input 'x': 'data' is 7, expected a list."),
    ],
)
def test_what_does_not_fit_is_refused(data: object, dtype: Any, shape: list[int], message: str) -> None:
    ways = (False, True) if not may_hold_booleans(json.dumps(data).encode()) else (True,)
    for way in ways:
        with pytest.raises(RequestError) as caught:
            array_from_json("x", data, np.dtype(dtype), shape, int(np.prod(shape)), may_hold_booleans=way)
        assert str(caught.value) == message
        assert caught.value.status == 400


def test_the_ends_of_a_range_are_kept() -> None:
    assert read([2**64 - 1, 0], np.uint64, [2]).tolist() == [2**64 - 1, 0]
    assert read([-(2**63), 2**63 - 1], np.int64, [2]).tolist() == [-(2**63), 2**63 - 1]
    assert read([3.4028234663852886e38], np.float32, [1])[0] == np.finfo(np.float32).max
    assert read([float("inf"), float("-inf")], np.float32, [2]).tolist() == [float("inf"), float("-inf")]


def test_an_empty_tensor_is_an_empty_list() -> None:
    assert read([], np.float32, [0, 3]).shape == (0, 3)
    assert read([[], []], np.float32, [2, 0]).shape == (2, 0)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=30))
@settings(max_examples=200, deadline=None)
def test_float32_is_given_back_bit_by_bit_whatever_its_values(values: list[float]) -> None:
    array = np.array(values, np.float32)
    text = dumps_with_non_finite({"data": json_values(array)})
    again = read(parse_json(text)["data"], np.float32, [len(values)])
    assert again.tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, np.uint8, np.int32, np.int64, np.uint64])
@given(st.lists(st.one_of(st.floats(), st.integers(-(2**70), 2**70), st.integers(-200, 300)), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_both_ways_of_reading_take_and_refuse_the_same(dtype: Any, values: list[float]) -> None:
    outcomes: list[Any] = []
    for way in (False, True):
        try:
            array = array_from_json("x", values, np.dtype(dtype), [len(values)], len(values), may_hold_booleans=way)
            outcomes.append((array.dtype, [str(value) for value in array.tolist()]))  # NaN is NaN, whatever its bits
        except RequestError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    ("text", "may"), [(b'{"data": [true]}', True), (b"[1, false]", True), (b'{"data": [1, 2.5, -3e4]}', False)]
)
def test_a_boolean_is_never_overlooked(text: bytes, may: bool) -> None:
    assert may_hold_booleans(text) == may
    assert may_hold_booleans(memoryview(text)) == may


def test_documents_hold_nan_and_infinity_as_triton_s_clients_write_them() -> None:
    found = parse_json(b'{"data": [NaN, Infinity, -Infinity, 1]}')["data"]
    assert np.isnan(found[0])
    assert found[1:] == [float("inf"), float("-inf"), 1]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b'{"a": nan}',
        b"[" * 100_000,
        b"[NaN," * 100_000,
        b'{"a":' * 50_000 + b"NaN",
        b'{"a": 1' + b"0" * 10_000 + b", NaN",
        b"[NaN, 1" + b"0" * 10_000 + b"]",
        b'"\xff"',
        b'["NaN", "\xff"]',
        b'{"a": 1}x',
    ],
    ids=["empty", "open", "nan", "deep", "deep-nan", "deep-object", "open-nan", "digits", "bytes", "bytes-nan", "more"],
)
def test_what_is_no_json_is_refused_however_deep_or_long(text: bytes) -> None:
    with pytest.raises(RequestError, match=r"^the body is not valid JSON: "):
        parse_json(text)


def test_only_floats_can_be_without_a_finite_value() -> None:
    assert is_finite(np.array([1, 2]))
    assert is_finite(np.array([1.0]))
    assert not is_finite(np.array([1.0, np.nan], np.float16))
    assert not is_finite(np.array([np.inf], ml_dtypes.bfloat16))


def test_bfloat16_is_written_as_the_numbers_it_holds() -> None:
    assert json_values(np.array([[0.5, -2]], ml_dtypes.bfloat16)).tolist() == [0.5, -2]
    assert json.loads(dumps_with_non_finite({"d": np.array([0.1], np.float32)})) == {"d": [0.1]}
