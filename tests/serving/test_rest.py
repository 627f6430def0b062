"""REST answers: the right values, or the right status and the reason."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from running_server import RunningServer

ROW = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 0, 2]}


def test_a_request_in_json_is_answered_in_json(shared: RunningServer) -> None:
    answer = shared.infer("linear", {"id": "7", "inputs": [ROW]})
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json == {
        "model_name": "linear",
        "model_version": "1",
        "id": "7",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [11.0, 14.0]}],
    }


def test_a_version_may_be_named(shared: RunningServer) -> None:
    body = {"inputs": [ROW]}
    assert shared.request("POST", "/v2/models/linear/versions/1/infer", body).status == 200
    answer = shared.request("POST", "/v2/models/linear/versions/2/infer", body)
    assert (answer.status, answer.json) == (
        404,
        {"error": "model 'linear' has no version '2' now; it serves version 1."},
    )


def test_what_is_not_finite_comes_back_as_it_is(shared: RunningServer) -> None:
    data = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0, 0]}]}
    answer = shared.infer("divide", data)
    assert answer.status == 200
    assert b'"data":[NaN,Infinity]' in answer.body


@pytest.mark.parametrize(
    ("model", "body", "message"),
    [
        ("linear", b"{", "the body is not valid JSON: "),
        ("linear", {"inputs": [ROW | {"shape": [3]}]}, "input 'x': found shape [3], expected [N, 3]."),
        ("linear", {"inputs": [ROW | {"datatype": "FP64"}]}, "input 'x': found datatype 'FP64', expected FP32."),
        ("linear", {"inputs": []}, "input 'x' is missing. The model takes x: float32 [N, 3]."),
        (
            "table",
            {"inputs": [{"name": "i", "shape": [1], "datatype": "INT64", "data": [9]}]},
            "the model cannot compute these inputs: ",
        ),
        (
            "two",
            {
                "inputs": [
                    {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]},
                    {"name": "b", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]},
                ]
            },
            "input 'b': found shape [2, 2], expected [N, 2] with N = 1 as in the inputs before it.",
        ),
    ],
)
def test_a_client_s_mistake_is_a_400_with_its_reason(
    shared: RunningServer, model: str, body: Any, message: str
) -> None:
    answer = shared.infer(model, body)
    assert answer.status == 400
    assert answer.json["error"].startswith(message)


def test_a_wrong_row_among_right_ones_harms_nobody_else(shared: RunningServer) -> None:
    """Requests that share a run: one asks beyond the table."""
    answers: dict[int, Any] = {}

    def ask(index: int) -> None:
        body = {"inputs": [{"name": "i", "shape": [1], "datatype": "INT64", "data": [index]}]}
        answers[index] = shared.infer("table", body)

    threads = [threading.Thread(target=ask, args=(index,)) for index in (0, 1, 2, 50, -60, 70)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {index: answer.status for index, answer in answers.items()} == {0: 200, 1: 200, 2: 200} | dict.fromkeys(
        (50, -60, 70), 400
    )
    assert [answers[index].json["outputs"][0]["data"] for index in range(3)] == [[7], [8], [9]]


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", "/v2/models/linear/infer", 405, "inference takes POST."),
        (
            "POST",
            "/v2/models/absent/infer",
            404,
            "no model 'absent'; this server has linear, two, divide, table, mixing.",
        ),
        (
            "POST",
            "/v2/models/linear/nonsense/1/infer",
            404,
            "no page /v2/models/linear/nonsense/1/infer; /openapi.json",
        ),
        ("POST", "/v2/models/linear/", 404, "no page /v2/models/linear/; /openapi.json lists all."),
        ("GET", "/v2/", 404, "no page /v2/; /openapi.json lists all."),
        ("GET", "/nothing", 404, "no page /nothing; /openapi.json lists all."),
        ("DELETE", "/v2/models/linear", 405, "this page takes GET."),
        ("GET", "/v2/models/absent", 404, "no model 'absent'; this server has linear, two, divide, table, mixing."),
        (
            "GET",
            "/v2/models/linear/versions/5/ready",
            404,
            "model 'linear' has no version '5' now; it serves version 1.",
        ),
    ],
)
def test_an_address_that_is_not_there_says_so(
    shared: RunningServer, method: str, path: str, status: int, error: str
) -> None:
    answer = shared.request(method, path, b"{}" if method == "POST" else None)
    assert answer.status == status
    assert answer.json["error"].startswith(error)
    if status == 405:
        assert answer.headers["allow"] in ("POST", "GET, HEAD", "HEAD, GET")


def test_health_metadata_metrics_and_openapi_are_served(shared: RunningServer) -> None:
    assert shared.request("GET", "/v2/health/live").json == {"live": True}
    assert shared.request("GET", "/v2/health/ready").json == {"ready": True}
    assert shared.request("GET", "/v2").json["extensions"] == ["binary_tensor_data"]
    assert shared.request("GET", "/v2/models/two").json == {
        "name": "two",
        "versions": ["1"],
        "platform": "onnx_onnxruntime",
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "b", "datatype": "FP32", "shape": [-1, 2]},
        ],
        "outputs": [
            {"name": "total", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "difference", "datatype": "FP32", "shape": [-1, 2]},
        ],
    }
    assert shared.request("GET", "/v2/models/two/ready").json == {"name": "two", "ready": True}
    document = shared.request("GET", "/openapi.json").json
    assert "/v2/models/two/infer" in document["paths"]
    shared.infer("two", b"{")
    page = shared.request("GET", "/metrics").body.decode()
    assert 'l0runtime_requests_total{model="two",protocol="rest",status="400"}' in page
    assert 'l0runtime_model_version{model="two"} 1.0' in page


@pytest.mark.parametrize(("path", "status"), [("/v2/health/live", 200), ("/v2/models/linear/infer", 405), ("/x", 404)])
def test_a_head_is_answered_without_a_body(shared: RunningServer, path: str, status: int) -> None:
    answer = shared.request("HEAD", path)
    assert (answer.status, answer.body) == (status, b"")
    assert int(answer.headers["content-length"]) > 0


def test_a_compressed_body_is_refused(shared: RunningServer) -> None:
    answer = shared.infer("linear", json.dumps({"inputs": [ROW]}).encode(), {"Content-Encoding": "gzip"})
    assert answer.status == 415
    assert answer.json == {"error": "compressed bodies are not taken; send this one without Content-Encoding."}


@pytest.mark.parametrize("length", ["-1", "1e3", "\xb2", "9" * 30, "0x10", ""])
def test_a_length_that_is_no_number_is_refused(shared: RunningServer, length: str) -> None:
    answer = shared.infer("linear", {"inputs": [ROW]}, {"Inference-Header-Content-Length": length})
    assert answer.status == 400
    assert "Inference-Header-Content-Length is " in answer.json["error"]


def test_models_whose_rows_mix_are_served_one_request_at_a_time(shared: RunningServer) -> None:
    loaded = {event["model"]: event for event in shared.events() if event["event"] == "model_loaded"}
    assert loaded["linear"]["merges_requests"] is True
    assert loaded["mixing"]["merges_requests"] is False
    assert "output 'y' of a row depends on the other rows" in loaded["mixing"]["reason"]
    body = {"inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(shared.infer("mixing", body))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.json["outputs"][0]["data"] for one in results] == [[11, 12, 13, 14]] * 8
