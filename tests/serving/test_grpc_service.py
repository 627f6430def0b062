"""gRPC answers: typed and raw tensors, and the right code for each mistake."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from running_server import RunningServer

from l0runtime.serving.grpc_messages import SERVICE, message_classes
from l0runtime.serving.options import Limits

Start = Callable[..., RunningServer]
MESSAGES = message_classes()
X = {"name": "x", "datatype": "FP32", "shape": [1, 3], "contents": {"fp32_contents": [1, 0, 2]}}


@pytest.fixture
def channel(shared: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(shared.grpc) as made:
        yield made


def call(channel: grpc.Channel, method: str, metadata: Any = None, **fields: Any) -> Any:
    ask = channel.unary_unary(
        f"/{SERVICE}/{method}",
        request_serializer=MESSAGES[f"{method}Request"].SerializeToString,
        response_deserializer=MESSAGES[f"{method}Response"].FromString,
    )
    return ask(MESSAGES[f"{method}Request"](**fields), timeout=30, metadata=metadata)


def test_typed_contents_are_answered_with_typed_contents(channel: grpc.Channel) -> None:
    answer = call(channel, "ModelInfer", model_name="linear", id="a", inputs=[X])
    assert (answer.model_name, answer.model_version, answer.id) == ("linear", "1", "a")
    assert answer.outputs[0].name == "y"
    assert list(answer.outputs[0].shape) == [1, 2]
    assert list(answer.outputs[0].contents.fp32_contents) == [11, 14]
    assert not answer.raw_output_contents


def test_raw_contents_are_answered_with_raw_contents(channel: grpc.Channel) -> None:
    raw = np.array([1, 0, 2], np.float32).tobytes()
    tensor = {key: value for key, value in X.items() if key != "contents"}
    answer = call(channel, "ModelInfer", model_name="linear", inputs=[tensor], raw_input_contents=[raw])
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [11, 14]


def without(**changes: Any) -> dict[str, Any]:
    return {
        "model_name": "linear",
        "inputs": [{key: value for key, value in (X | changes).items() if value is not None}],
    }


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"model_name": "absent"}, "NOT_FOUND", "no model 'absent'; this server has "),
        ({"model_name": "linear", "model_version": "4"}, "NOT_FOUND", "model 'linear' has no version '4' now; "),
        ({"model_name": "linear"}, "INVALID_ARGUMENT", "input 'x' is missing. The model takes x: float32 [N, 3]."),
        (without(datatype="INT8"), "INVALID_ARGUMENT", "input 'x': found datatype 'INT8', expected FP32."),
        (
            without(shape=[1, -3]),
            "INVALID_ARGUMENT",
            "input 'x': shape [1, -3] holds -3, expected sizes of at least 0.",
        ),
        (without(shape=[2, 3]), "INVALID_ARGUMENT", "input 'x': contents have 3 values, shape [2, 3] has 6."),
        (without(shape=[3, 1]), "INVALID_ARGUMENT", "input 'x': found shape [3, 1], expected [N, 3]."),
        (
            without(contents={"fp64_contents": [1, 2, 3]}),
            "INVALID_ARGUMENT",
            "input 'x': contents are in fp64_contents; FP32 belongs in fp32_contents.",
        ),
        (
            without() | {"raw_input_contents": [b"a"]},
            "INVALID_ARGUMENT",
            "input 'x': has both contents and raw_input_con",
        ),
        (
            without(contents=None) | {"raw_input_contents": [b"abc"]},
            "INVALID_ARGUMENT",
            "input 'x': raw contents have 3 bytes; shape [1, 3] of FP32 takes 12.",
        ),
        (
            without(contents=None) | {"raw_input_contents": [b"a", b"b"]},
            "INVALID_ARGUMENT",
            "raw_input_contents has 2 entries for 1 inputs.",
        ),
        (
            without() | {"outputs": [{"name": "q"}]},
            "INVALID_ARGUMENT",
            "output 'q' is not one of the model's outputs: y.",
        ),
        (
            without() | {"parameters": {"sequence_id": {"int64_param": 1}}},
            "INVALID_ARGUMENT",
            "parameter 'sequence_id': sequences are not served; every request stands for itself.",
        ),
    ],
)
def test_a_mistake_has_its_code_and_reason(channel: grpc.Channel, fields: Any, code: str, message: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "ModelInfer", **fields)
    assert caught.value.code() is grpc.StatusCode[code]
    assert caught.value.details().startswith(message)


def test_bytes_that_are_no_message_are_the_client_s_mistake(channel: grpc.Channel) -> None:
    for method in ("ModelInfer", "ModelMetadata"):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/{SERVICE}/{method}")(b"\xff\xff\xff", timeout=30)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == f"the bytes are no {method}Request."


def test_a_method_that_is_not_served_says_so(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{SERVICE}/RepositoryIndex")(b"", timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_small_integers_beyond_their_range_are_refused(start: Start) -> None:
    server = start({"same": "g (int8[N] x) => (int8[N] y) { y = Identity (x) }"})
    with grpc.insecure_channel(server.grpc) as channel:
        tensor = {"name": "x", "datatype": "INT8", "shape": [2], "contents": {"int_contents": [-128, 127]}}
        answer = call(channel, "ModelInfer", model_name="same", inputs=[tensor])
        assert list(answer.outputs[0].contents.int_contents) == [-128, 127]
        tensor["contents"] = {"int_contents": [0, 128]}
        with pytest.raises(grpc.RpcError, match="input 'x': contents hold a value beyond the range of int8"):
            call(channel, "ModelInfer", model_name="same", inputs=[tensor])


def test_a_message_above_the_limit_is_refused(start: Start) -> None:
    server = start({"linear": "linear"}, limits=Limits(body_bytes=10_000))
    with grpc.insecure_channel(server.grpc) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, "ModelInfer", model_name="linear", raw_input_contents=[b"a" * 20_000])
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert call(channel, "ModelInfer", model_name="linear", inputs=[X]).outputs


def test_a_token_is_asked_for_except_by_the_probes(start: Start) -> None:
    server = start({"linear": "linear"}, token="secret")
    with grpc.insecure_channel(server.grpc) as channel:
        assert call(channel, "ServerReady").ready
        for metadata, message in (
            (None, "a token is needed: send the header 'Authorization: Bearer <token>'."),
            ([("authorization", "Bearer other")], "the token is wrong."),
        ):
            for method, fields in (("ModelInfer", without()), ("ModelMetadata", {"name": "linear"})):
                with pytest.raises(grpc.RpcError) as caught:
                    call(channel, method, metadata, **fields)
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
                assert caught.value.details() == message
        good = [("authorization", "Bearer secret")]
        assert call(channel, "ModelInfer", good, **without()).outputs[0].contents.fp32_contents[:] == [11, 14]


@pytest.mark.parametrize("sent", [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[:10], b"GET / HTTP/1.1\r\n\r\n"])
def test_a_connection_that_never_becomes_a_call_is_closed(start: Start, sent: bytes) -> None:
    server = start({"linear": "linear"}, limits=Limits(receive_s=0.5, idle_s=1.0))
    host, _, port = server.grpc.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=15) as client:
        client.sendall(sent)
        started = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            while client.recv(65536):
                pass
        assert time.monotonic() - started < 10


def test_a_channel_that_was_idle_for_long_goes_on(start: Start) -> None:
    server = start({"linear": "linear"}, limits=Limits(idle_s=0.5))
    with grpc.insecure_channel(server.grpc) as channel:
        for _ in range(3):
            assert call(channel, "ServerLive").live
            time.sleep(1.2)
