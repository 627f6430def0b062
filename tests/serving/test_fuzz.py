"""Whatever bytes arrive: a status of the client's or a right answer, never a 500, and the server goes on."""

from __future__ import annotations

import http.client
import json
import random

import grpc
import numpy as np
import pytest
from running_server import RunningServer, W

from l0runtime.serving.grpc_messages import SERVICE, message_classes

X = np.array([[1, 0, 2], [3, 4, 5]], np.float32)
SEED_JSON = json.dumps(
    {
        "id": "a",
        "inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "parameters": {"binary_data_size": 24}}],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        "parameters": {"timeout": 5000000},
    }
).encode()
TOKENS = (
    b'-1 0 1e999 NaN null true [] {} "" "x" 18446744073709551616 9223372036854775808 [[ ]] \\ud800 \x00 \xff '
    b'{"a":{}} [2,3] shape data'
).split(b" ")


def mutated(generator: random.Random, content: bytes) -> bytes:
    """A few bytes changed, removed, inserted, repeated, or the end cut off."""
    found = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        at = generator.randrange(len(found) + 1)
        what = generator.randrange(6)
        if what == 0 and at < len(found):
            found[at] = generator.randrange(256)
        elif what == 1:
            del found[at : at + generator.randint(1, 8)]
        elif what == 2:
            found[at:at] = generator.choice(TOKENS)
        elif what == 3:
            found[at : at + generator.randint(1, 6)] = generator.choice(TOKENS)
        elif what == 4:
            found[at:at] = found[at : at + generator.randint(1, 30)]
        else:
            del found[at:]
    return bytes(found)


def right_answer(answer: http.client.HTTPResponse, body: bytes, values: bytes) -> bool:
    """Whether a 200 holds the product of the bytes that were sent as x."""
    length = answer.getheader("inference-header-content-length")
    sent = np.frombuffer(values, np.float32).reshape(-1, 3)
    if length is None:
        found = np.array(json.loads(body)["outputs"][0]["data"], np.float32)
    else:
        found = np.frombuffer(body[int(length) :], np.float32)
    with np.errstate(all="ignore"):
        expected = sent @ W
    return bool(np.allclose(found.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5, equal_nan=True))


@pytest.mark.parametrize("seed", range(4))
def test_changed_bytes_of_a_binary_request_never_break_the_server(shared: RunningServer, seed: int) -> None:
    generator = random.Random(seed)
    connection = http.client.HTTPConnection("127.0.0.1", shared.port, timeout=30)
    statuses: dict[int, int] = {}
    for _ in range(600):
        head, values = SEED_JSON, X.tobytes()
        if generator.random() < 0.75:
            head = mutated(generator, head)
        if generator.random() < 0.4:
            values = mutated(generator, values)
        length = len(head) if generator.random() < 0.8 else generator.choice([0, 1, len(head) + 1, 10**12])
        headers = {"Inference-Header-Content-Length": str(length)}
        connection.request("POST", "/v2/models/linear/infer", head + values, headers)
        answer = connection.getresponse()
        body = answer.read()
        statuses[answer.status] = statuses.get(answer.status, 0) + 1
        assert answer.status in (200, 400), (answer.status, head, body)
        if answer.status == 400:
            assert json.loads(body)["error"]
        else:
            start = length if 0 < length <= len(head) else len(head)
            assert right_answer(answer, body, (head + values)[start:]), head
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
    assert right_answer(answer, body, X.tobytes())
    assert not right_answer(answer, body, (X + 1).tobytes())
