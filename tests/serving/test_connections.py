"""Clients that stall, cut off, lie about sizes or send nonsense get the right status, and the server goes on."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable

import pytest
from running_server import RunningServer

from l0runtime.serving.options import Limits

Start = Callable[..., RunningServer]
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 0, 2]}]}).encode()
HEAD = b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(BODY)


@pytest.fixture
def server(start: Start) -> RunningServer:
    return start({"linear": "linear"}, limits=Limits(body_bytes=20_000, head_bytes=4096, receive_s=0.6, idle_s=1.0))


def connect(server: RunningServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def everything(client: socket.socket) -> bytes:
    """What the server says until it closes the connection."""
    found = b""
    while True:
        try:
            data = client.recv(65536)
        except ConnectionResetError:
            return found
        if not data:
            return found
        found += data


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def assert_alive(server: RunningServer) -> None:
    assert server.infer("linear", BODY).json["outputs"][0]["data"] == [11, 14]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (HEAD[:20], 408),
        (HEAD[:-2], 408),
        (HEAD, 408),
        (HEAD + BODY[:-1], 408),
        (b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", 408),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"POST /v2/models/linear/infer HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (b"POST /v2/models/linear/infer HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST /v2/models/linear/infer HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400),
        (b"POST /v2/models/linear/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 6000, 431),
        (b"GET /" + b"a" * 6000, 431),
    ],
    ids=[
        "half a line",
        "half a head",
        "no body",
        "half a body",
        "half a chunk",
        "no HTTP",
        "TLS",
        "two lengths",
        "negative",
        "huge",
        "bad chunk",
        "endless header",
        "endless address",
    ],
)
def test_what_never_becomes_a_request_is_answered_and_closed(server: RunningServer, sent: bytes, status: int) -> None:
    with connect(server) as client:
        client.sendall(sent)
        assert status_of(everything(client)) == status
    assert_alive(server)


def test_headers_over_the_limit_are_refused_also_where_they_come_at_once(server: RunningServer) -> None:
    many = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 90) for number in range(60))
    with connect(server) as client:
        client.sendall(HEAD.replace(b"Host: a\r\n", many) + BODY)
        answer = everything(client)
    assert status_of(answer) == 431
    assert b"the headers are larger than this server's limit of 4096 bytes." in answer
    assert answer.count(b"HTTP/1.1") == 1
    assert_alive(server)


@pytest.mark.parametrize("requests", [1, 3])
def test_a_client_that_ends_its_half_still_gets_its_answers(server: RunningServer, requests: int) -> None:
    with connect(server) as client:
        client.sendall((HEAD + BODY) * requests)
        client.shutdown(socket.SHUT_WR)
        answer = everything(client)
    assert answer.count(b"HTTP/1.1 200 OK") == answer.count(b"[11.0,14.0]") == requests


def test_a_client_that_ends_its_half_within_a_request_is_left(server: RunningServer) -> None:
    with connect(server) as client:
        client.sendall(HEAD + BODY[:-1])
        client.shutdown(socket.SHUT_WR)
        started = time.monotonic()
        assert everything(client) == b""
        assert time.monotonic() - started < 0.5  # at once, not when its time is up


def test_a_client_that_asks_for_leave_to_send_its_body_gets_it_at_once(server: RunningServer) -> None:
    with connect(server) as client:
        client.sendall(HEAD.replace(b"Host: a", b"Host: a\r\nExpect: 100-continue"))
        assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(BODY)
        assert status_of(client.recv(65536)) == 200


def test_an_answer_comes_in_one_piece(server: RunningServer) -> None:
    with connect(server) as client:
        for _ in range(20):
            client.sendall(HEAD + BODY)
            answer = client.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 OK")
            assert answer.endswith(b"}]}")


def test_a_connection_on_which_nothing_comes_is_closed(server: RunningServer) -> None:
    with connect(server) as client:
        started = time.monotonic()
        assert everything(client) == b""
        assert time.monotonic() - started < 8
    assert_alive(server)


@pytest.mark.parametrize("sent", [b"", HEAD[:10], HEAD, HEAD + BODY[:20]])
def test_a_client_that_goes_away_leaves_nothing_behind(server: RunningServer, sent: bytes) -> None:
    clients = [connect(server) for _ in range(20)]
    for client in clients:
        client.sendall(sent)
        client.close()
    assert_alive(server)
    state = server.server._uvicorn.server_state  # type: ignore[union-attr]
    end = time.monotonic() + 10
    while (state.connections or state.tasks) and time.monotonic() < end:
        time.sleep(0.05)
    assert not state.connections
    assert not state.tasks


def test_a_client_that_sends_byte_by_byte_is_answered_if_it_keeps_the_time(server: RunningServer) -> None:
    with connect(server) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in HEAD + BODY:
            client.sendall(bytes([byte]))
        assert status_of(client.recv(65536)) == 200


def test_a_body_of_a_declared_size_above_the_limit_is_refused_before_it_is_sent(server: RunningServer) -> None:
    with connect(server) as client:
        client.sendall(HEAD.replace(b"%d" % len(BODY), b"%d" % 10**15))
        answer = everything(client)
    assert status_of(answer) == 413
    assert b"the body is larger than this server's limit of 20000 bytes." in answer
    assert_alive(server)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_grows_above_the_limit_is_refused(server: RunningServer, chunked: bool) -> None:
    with connect(server) as client:
        if chunked:
            head = HEAD.replace(b"Content-Length: %d" % len(BODY), b"Transfer-Encoding: chunked")
            client.sendall(head + b"".join(b"1000\r\n" + b"x" * 4096 + b"\r\n" for _ in range(8)))
        else:
            client.sendall(HEAD.replace(b"%d" % len(BODY), b"30000") + b"x" * 30_000)
        assert status_of(everything(client)) == 413
    assert_alive(server)


def test_a_client_that_never_reads_is_cut_off(start: Start) -> None:
    text = "g (float[N,1] x) => (float[N,M] y) <int64[2] s={1,20000}> { y = Tile (x, s) }"
    server = start({"wide": text, "linear": "linear"}, limits=Limits(receive_s=0.5, body_bytes=10**6))
    body = json.dumps({"inputs": [{"name": "x", "shape": [300, 1], "datatype": "FP32", "data": [1] * 300}]}).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(b"POST /v2/models/wide/infer HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        state = server.server._uvicorn.server_state  # type: ignore[union-attr]
        end = time.monotonic() + 5
        while not state.connections and time.monotonic() < end:
            time.sleep(0.02)
        end = time.monotonic() + 20
        while state.connections and time.monotonic() < end:
            time.sleep(0.05)
        assert not state.connections
    assert_alive(server)


def test_requests_sent_before_the_answers_are_answered_in_order(server: RunningServer) -> None:
    with connect(server) as client:
        client.sendall((HEAD + BODY) * 5)
        found = b""
        while found.count(b"HTTP/1.1 200 OK") < 5 or not found.endswith(b"}"):
            found += client.recv(65536)
    assert found.count(b"[11.0,14.0]") == 5


def test_one_connection_too_many_is_refused_at_once(start: Start) -> None:
    server = start({"linear": "linear"}, limits=Limits(connections=3))
    held = [connect(server) for _ in range(3)]
    time.sleep(0.2)
    with connect(server) as client:
        client.sendall(HEAD + BODY)
        answer = everything(client)
    assert status_of(answer) == 503
    assert b"retry-after: 1\r\n" in answer
    assert answer.endswith(b'{"error":"3 connections are open already; try again later."}')
    held[1].sendall(HEAD + BODY)  # those that were there first are served all the same
    assert status_of(held[1].recv(65536)) == 200
    for one in held:
        one.close()
    time.sleep(0.2)
    assert_alive(server)


def test_a_client_that_sends_all_of_a_refused_body_first_still_reads_the_answer(start: Start) -> None:
    server = start({"linear": "linear"}, limits=Limits(body_bytes=20_000))
    size = 30_000_000
    with connect(server) as client:
        client.sendall(HEAD.replace(b"%d" % len(BODY), b"%d" % size))
        client.sendall(b"x" * size)
        assert status_of(client.recv(65536)) == 413
        client.sendall(HEAD + BODY)  # and the connection is as good as new
        assert status_of(client.recv(65536)) == 200


def test_a_connection_that_cannot_be_looked_at_does_not_end_the_watch(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(server) as one, connect(server) as other:
        time.sleep(0.1)
        found = next(iter(server.server._uvicorn.server_state.connections))  # type: ignore[union-attr]
        monkeypatch.setattr(found, "sweep", lambda now: {}["nothing"])
        for client in (one, other):
            assert everything(client) == b""  # ended, both of them
    assert_alive(server)
