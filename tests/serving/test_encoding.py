"""Answers say what the model computed, in JSON or in bytes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from l0runtime.serving.encoding import bytes_of, encode_response
from l0runtime.serving.request import InferRequest, Signature, WantedOutput
from l0runtime.session import TensorSpec

SIGNATURE = Signature([], [TensorSpec("y", "float32", ("N", 2)), TensorSpec("z", "int64", ("N",))])
RESULTS: list[np.ndarray[Any, Any]] = [np.array([[0.1, -2]], np.float32), np.array([2**62])]


def encode(*outputs: tuple[int, bool], results: list[np.ndarray[Any, Any]] = RESULTS) -> tuple[bytes, int | None]:
    request = InferRequest("r1", {}, [WantedOutput(*one) for one in outputs], None)
    return encode_response("m", "3", request, SIGNATURE, results)


def test_json_holds_the_shortest_numbers_that_read_back() -> None:
    content, length = encode((0, False), (1, False))
    assert length is None
    assert json.loads(content) == {
        "model_name": "m",
        "model_version": "3",
        "id": "r1",
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0.1, -2.0]},
            {"name": "z", "datatype": "INT64", "shape": [1], "data": [2**62]},
        ],
    }


def test_binary_values_follow_the_json_in_the_order_asked_for() -> None:
    content, length = encode((1, True), (0, False))
    assert length is not None
    outputs = json.loads(content[:length])["outputs"]
    assert outputs[0] == {"name": "z", "datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": 8}}
    assert outputs[1]["data"] == [0.1, -2.0]
    assert content[length:] == (2**62).to_bytes(8, "little")


def test_nan_and_infinity_are_written_and_not_turned_into_null() -> None:
    values = np.array([[np.nan, -np.inf]], np.float32)
    content, _ = encode((0, False), results=[values, RESULTS[1]])
    assert b'"data":[NaN,-Infinity]' in content
    assert "id" in json.loads(content)


def test_bytes_are_little_endian_and_row_by_row() -> None:
    assert bytes_of(np.array([[1, 2], [3, 4]], ">i2").T) == bytes([1, 0, 3, 0, 2, 0, 4, 0])
