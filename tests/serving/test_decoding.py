"""REST bodies become requests, or are refused with the reason."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from l0runtime.serving.decoding import decode_request
from l0runtime.serving.failures import RequestError
from l0runtime.serving.request import InferRequest, Signature
from l0runtime.session import TensorSpec

SIGNATURE = Signature(
    [TensorSpec("x", "float32", ("N", 2)), TensorSpec("k", "bool", ("N",))],
    [TensorSpec("y", "float32", ("N", 1)), TensorSpec("z", "int64", ("N",))],
)
X = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
K = {"name": "k", "shape": [1], "datatype": "BOOL", "data": [True]}


def decode(document: object, binary: bytes = b"", *, announce: bool = True) -> InferRequest:
    head = json.dumps(document).encode()
    return decode_request(head + binary, len(head) if binary and announce else None, SIGNATURE)


def raw(name: str, datatype: str, shape: list[int], size: int) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}


def test_json_and_binary_tensors_may_be_mixed() -> None:
    values = np.array([[1.5, -2]], np.float32)
    request = decode({"id": "a", "inputs": [raw("x", "FP32", [1, 2], 8), K]}, values.tobytes())
    assert request.id == "a"
    assert request.feed["x"].tolist() == [[1.5, -2]]
    assert request.feed["k"].tolist() == [True]
    assert [(wanted.index, wanted.binary) for wanted in request.outputs] == [(0, False), (1, False)]
    assert request.timeout_s is None


def test_binary_tensors_follow_in_the_order_of_the_inputs() -> None:
    document = {"inputs": [raw("k", "BOOL", [1], 1), raw("x", "FP32", [1, 2], 8)]}
    request = decode(document, b"\x01" + np.array([3, 4], np.float32).tobytes())
    assert request.feed["k"].tolist() == [True]
    assert request.feed["x"].tolist() == [[3, 4]]
    assert request.feed["x"].flags.aligned


def test_outputs_are_binary_where_it_is_asked_for() -> None:
    everything = decode({"inputs": [X, K], "parameters": {"binary_data_output": True}})
    assert [wanted.binary for wanted in everything.outputs] == [True, True]
    chosen = decode({"inputs": [X, K], "outputs": [{"name": "z", "parameters": {"binary_data": True}}, {"name": "y"}]})
    assert [(wanted.index, wanted.binary) for wanted in chosen.outputs] == [(1, True), (0, False)]


def test_a_timeout_is_in_microseconds() -> None:
    assert decode({"inputs": [X, K], "parameters": {"timeout": 1500}}).timeout_s == 0.0015


def test_a_half_precision_tensor_is_taken_from_its_bytes() -> None:
    signature = Signature([TensorSpec("b", "bfloat16", (2,))], [TensorSpec("y", "bfloat16", (2,))])
    array = np.array([0.5, -3], ml_dtypes.bfloat16)
    head = json.dumps({"inputs": [raw("b", "BF16", [2], 4)]}).encode()
    assert decode_request(head + array.tobytes(), len(head), signature).feed["b"].tolist() == [0.5, -3]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "the body is [], expected a JSON object with 'inputs'."),
        ({}, "'inputs' is None, expected a list of tensors."),
        ({"inputs": 1}, "'inputs' is 1, expected a list of tensors."),
        ({"inputs": [1]}, "'inputs' holds 1, expected a tensor: name, shape, datatype and data."),
        ({"inputs": [X, K], "id": 3}, "'id' is 3, expected text."),
        ({"inputs": [X | {"data": [float("nan"), 1]}, K], "id": "\ud800"}, "'id' is '\\ud800', expected text."),
        ({"inputs": [{"name": "q"}]}, "input 'q' is not one of the model's inputs: x, k."),
        ({"inputs": [{}]}, "input None is not one of the model's inputs: x, k."),
        ({"inputs": [{"name": ["x"]}]}, "input ['x'] is not one of the model's inputs: x, k."),
        ({"inputs": [X | {"datatype": "FP64"}]}, "input 'x': found datatype 'FP64', expected FP32."),
        ({"inputs": [X | {"datatype": None}]}, "input 'x': found datatype None, expected FP32."),
        ({"inputs": [X, X]}, "input 'x' is given twice."),
        ({"inputs": [X | {"shape": 2}]}, "input 'x': 'shape' is 2, expected a list of whole numbers."),
        ({"inputs": [X | {"shape": [-1, 2]}]}, "input 'x': shape [-1, 2] holds -1, expected sizes of at least 0."),
        ({"inputs": [X | {"shape": [1.0, 2]}]}, "input 'x': shape [1.0, 2] holds 1.0, expected sizes of at least 0."),
        (
            {"inputs": [X | {"shape": [True, 2]}]},
            "input 'x': shape [True, 2] holds True, expected sizes of at least 0.",
        ),
        ({"inputs": [X | {"shape": [2**63, 0], "data": []}]}, f"input 'x': shape [{2**63}, 0] holds {2**63}, expected"),
        ({"inputs": [X | {"shape": [2**62, 0], "data": []}]}, "is beyond what an array can have."),
        ({"inputs": [X | {"shape": [1] * 99, "data": [1]}]}, "is beyond what an array can have."),
        (
            {"inputs": [X | {"shape": [2**40, 2**40]}]},
            "'data' holds 2 values, shape [1099511627776, 1099511627776] has",
        ),
        ({"inputs": [X | {"parameters": 4}]}, "input 'x': 'parameters' is 4, expected an object."),
        ({"inputs": [X | {"parameters": {"binary_data_size": 8}}]}, "has both 'data' and the parameter 'binary_data_s"),
        ({"inputs": [{k: v for k, v in X.items() if k != "data"}]}, "input 'x': has neither 'data' nor the parameter"),
        (
            {"inputs": [X | {"parameters": {"shared_memory_region": "r"}}]},
            "input 'x': parameter 'shared_memory_region': shared memory is not served; send the values.",
        ),
        (
            {"inputs": [X, K], "parameters": {"sequence_id": 1}},
            "parameter 'sequence_id': sequences are not served; every request stands for itself.",
        ),
        (
            {"inputs": [X, K], "parameters": {"timeout": -1}},
            "parameter 'timeout' is -1, expected microseconds as a whole",
        ),
        (
            {"inputs": [X, K], "parameters": {"binary_data_output": 1}},
            "parameter 'binary_data_output' is 1, expected tr",
        ),
        ({"inputs": [X, K], "outputs": {}}, "'outputs' is {}, expected a list of names."),
        ({"inputs": [X, K], "outputs": ["y"]}, "'outputs' holds 'y', expected an object with 'name'."),
        ({"inputs": [X, K], "outputs": [{"name": "x"}]}, "output 'x' is not one of the model's outputs: y, z."),
        ({"inputs": [X, K], "outputs": [{"name": "y"}, {"name": "y"}]}, "output 'y' is asked for twice."),
        (
            {"inputs": [X, K], "outputs": [{"name": "y", "parameters": {"classification": 3}}]},
            "output 'y': parameter 'classification' is not served; sort the scores yourself.",
        ),
        (
            {"inputs": [raw("x", "FP32", [1, 2], 8)]},
            "binary_data_size is 8, 0 bytes of binary data are left. Is Inference-Header-Content-Length set?",
        ),
        ({"inputs": [raw("x", "FP32", [1, 2], 7)]}, "binary_data_size is 7; shape [1, 2] of FP32 takes 8 bytes."),
        (
            {"inputs": [raw("x", "FP32", [2**40], 2**42)]},
            "binary_data_size is 4398046511104, 0 bytes of binary data are",
        ),
        ({"inputs": [raw("x", "FP32", [1, 2], True)]}, "binary_data_size is True; shape [1, 2] of FP32 takes 8 bytes."),
    ],
)
def test_a_mistake_is_named(document: object, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        decode(document)
    assert message in str(caught.value)
    assert caught.value.status == 400


def test_bytes_that_belong_to_no_tensor_are_refused() -> None:
    with pytest.raises(RequestError, match=r"^3 bytes of binary data belong to no input\.$"):
        decode({"inputs": [X, K]}, b"abc")


def test_a_boolean_that_is_neither_0_nor_1_is_refused() -> None:
    with pytest.raises(RequestError, match=r"^input 'k': holds a byte above 1; a BOOL is 0 or 1\.$"):
        decode({"inputs": [X, raw("k", "BOOL", [2], 2)]}, b"\x01\x02")


@pytest.mark.parametrize("length", [0, 99, 10**17])
def test_a_length_of_the_json_beyond_the_body_is_refused(length: int) -> None:
    body = json.dumps({"inputs": [X, K]}).encode()[:50]
    with pytest.raises(RequestError, match=rf"^Inference-Header-Content-Length is {length}, the body has 50 bytes\.$"):
        decode_request(body, length, SIGNATURE)
