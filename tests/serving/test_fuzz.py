"""Whatever bytes arrive: a status of the client's or a right answer, never a 500, and the server goes on."""

from __future__ import annotations

import http.client
import json
import random

import grpc
import pytest
from running_server import RunningServer

from benchmarks.serving.fuzzing import SEED_JSON, X, is_right, mutated, spoilt_request, values_of
from l0runtime.serving.grpc_messages import SERVICE, message_classes


@pytest.mark.parametrize("seed", range(4))
def test_changed_bytes_of_a_binary_request_never_break_the_server(shared: RunningServer, seed: int) -> None:
    generator = random.Random(seed)
    connection = http.client.HTTPConnection("127.0.0.1", shared.port, timeout=30)
    statuses: dict[int, int] = {}
    for _ in range(600):
        head, values, length = spoilt_request(generator)
        headers = {"Inference-Header-Content-Length": str(length)}
        connection.request("POST", "/v2/models/linear/infer", head + values, headers)
        answer = connection.getresponse()
        body = answer.read()
        statuses[answer.status] = statuses.get(answer.status, 0) + 1
        assert answer.status in (200, 400), (answer.status, head, body)
        if answer.status == 400:
            assert json.loads(body)["error"]
        else:
            json_length = answer.getheader("inference-header-content-length")
            assert is_right(json_length, body, values_of(head, values, length)), head
    connection.close()
    assert min(statuses.get(200, 0), statuses.get(400, 0)) > 20, statuses
    assert (
        shared.infer("linear", SEED_JSON + X.tobytes(), {"Inference-Header-Content-Length": str(len(SEED_JSON))}).status
        == 200
    )


@pytest.mark.parametrize("seed", range(2))
def test_changed_bytes_of_a_grpc_message_never_break_the_server(shared: RunningServer, seed: int) -> None:
    generator = random.Random(seed)
    request = message_classes()["ModelInferRequest"](
        model_name="linear",
        inputs=[{"name": "x", "datatype": "FP32", "shape": [2, 3]}],
        raw_input_contents=[X.tobytes()],
    )
    content = request.SerializeToString()
    allowed = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.DEADLINE_EXCEEDED}
    counts = {"right": 0, "refused": 0}
    with grpc.insecure_channel(shared.grpc) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        for _ in range(400):
            try:
                answer = call(mutated(generator, content), timeout=30)
            except grpc.RpcError as error:
                if error.code() not in allowed:
                    raise
                counts["refused"] += 1
            else:
                assert message_classes()["ModelInferResponse"].FromString(answer).model_name == "linear"
                counts["right"] += 1
        assert call(content, timeout=30)
    assert min(counts.values()) > 10, counts


def test_the_fuzzer_would_notice_a_wrong_answer(shared: RunningServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", shared.port, timeout=30)
    headers = {"Inference-Header-Content-Length": str(len(SEED_JSON))}
    connection.request("POST", "/v2/models/linear/infer", SEED_JSON + X.tobytes(), headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    length = answer.getheader("inference-header-content-length")
    assert is_right(length, body, X.tobytes())
    assert not is_right(length, body, (X + 1).tobytes())
