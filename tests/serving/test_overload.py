"""More than a server can do is refused at once, and what takes too long is given up; nothing hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from running_server import RunningServer

from l0runtime.serving.grpc_messages import SERVICE, message_classes
from l0runtime.serving.options import Limits

Start = Callable[..., RunningServer]
BODY = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 0, 2]}]}
CALL = message_classes()["ModelInferRequest"](
    model_name="linear",
    inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 3], "contents": {"fp32_contents": [1, 0, 2]}}],
).SerializeToString()


@pytest.fixture
def held(start: Start, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RunningServer, threading.Event]]:
    """A server whose model computes only once the event is set; one request may wait, for 1.5 seconds."""
    server = start({"linear": "linear"}, limits=Limits(queue=1, deadline_s=1.5))
    session = server.server.repository.models["linear"].revision.session
    original, go = session.run_arrays, threading.Event()

    def run_arrays(feed: dict[str, Any]) -> list[Any]:
        assert go.wait(30)
        return original(feed)

    monkeypatch.setattr(session, "run_arrays", run_arrays)
    yield server, go
    go.set()


def fill(server: RunningServer, pool: ThreadPoolExecutor) -> list[Any]:
    """One request that runs and one that waits, as their futures."""
    batcher = server.server.repository.models["linear"]._batcher
    found = []
    for is_there in (lambda: batcher._running, lambda: batcher.waiting == 1):
        found.append(pool.submit(server.infer, "linear", BODY))
        end = time.monotonic() + 10
        while not is_there() and time.monotonic() < end:
            time.sleep(0.002)
    return found


def test_a_request_too_many_is_refused_at_once(held: tuple[RunningServer, threading.Event]) -> None:
    server, go = held
    with ThreadPoolExecutor(2) as pool, grpc.insecure_channel(server.grpc) as channel:
        accepted = fill(server, pool)
        started = time.monotonic()
        refused = server.infer("linear", BODY)
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/{SERVICE}/ModelInfer")(CALL, timeout=30)
        assert time.monotonic() - started < 1
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert refused.json == {"error": "1 requests wait already; try again later."}
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        # everything else is still answered
        assert server.request("GET", "/v2/health/ready").status == 200
        go.set()
        assert [one.result(20).status for one in accepted] == [200, 200]


def test_what_is_not_answered_in_time_is_given_up(held: tuple[RunningServer, threading.Event]) -> None:
    server, go = held
    with ThreadPoolExecutor(2) as pool:
        started = time.monotonic()
        answers = [one.result(20) for one in fill(server, pool)]
        assert [one.status for one in answers] == [504, 504]
        assert answers[0].json == {"error": "the request was not answered within its deadline."}
        assert 1.4 < time.monotonic() - started < 10
    go.set()
    assert server.infer("linear", BODY).status == 200


def test_a_client_may_ask_for_less_time(held: tuple[RunningServer, threading.Event]) -> None:
    server, _ = held
    started = time.monotonic()
    assert server.infer("linear", BODY | {"parameters": {"timeout": 100_000}}).status == 504  # microseconds
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{SERVICE}/ModelInfer")(CALL, timeout=0.2)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 1.4
