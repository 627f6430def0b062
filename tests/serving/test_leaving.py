"""What a client sent before a server stopped listening is answered, wherever it lay at that moment."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable

import grpc
import pytest
from running_server import RunningServer

from l0runtime.serving.grpc_messages import SERVICE, message_classes

Start = Callable[..., RunningServer]
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 0, 2]}]}).encode()
REQUEST = b"POST /v2/models/linear/infer HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


def everything(client: socket.socket) -> bytes:
    found = b""
    while data := client.recv(65536):
        found += data
    return found


def stopping_while_the_loop_is_busy(server: RunningServer, meanwhile: Callable[[], None]) -> None:
    """Let clients act while the event loop does something else, and stop the server right after that."""

    async def busy() -> None:
        held.set()
        acted.wait(10)  # the loop sees nothing of what comes now
        stopping.append(asyncio.ensure_future(server.server.stop(drain=False)))

    held, acted = threading.Event(), threading.Event()
    stopping: list[asyncio.Future[None]] = []
    future = asyncio.run_coroutine_threadsafe(busy(), server._loop)
    assert held.wait(10)
    meanwhile()
    acted.set()
    future.result(10)


def finish(server: RunningServer) -> None:
    async def stopped() -> bool:
        return bool(server.server._uvicorn_task and server.server._uvicorn_task.done())

    end = time.monotonic() + 20
    while not server.call(stopped()) and time.monotonic() < end:
        time.sleep(0.02)
    server.stopped = True
    time.sleep(0.1)
    server._end_loop()


@pytest.mark.parametrize("sent", ["at once", "later"])
def test_connections_that_waited_to_be_taken_are_answered(start: Start, sent: str) -> None:
    server = start({"linear": "linear"}, grpc_port=None)
    clients: list[socket.socket] = []

    def connect() -> None:
        for _ in range(20):
            clients.append(socket.create_connection(("127.0.0.1", server.port), timeout=20))
            if sent == "at once":
                clients[-1].sendall(REQUEST)

    stopping_while_the_loop_is_busy(server, connect)
    if sent == "later":  # the connection is there, its request is still on the way
        time.sleep(0.1)
        for client in clients:
            client.sendall(REQUEST)
    for client in clients:
        answer = everything(client)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"connection: close" in answer
        assert b"[11.0,14.0]" in answer
        client.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)
    finish(server)


def test_a_request_on_an_idle_connection_that_was_not_read_yet_is_answered(start: Start) -> None:
    server = start({"linear": "linear"}, grpc_port=None)
    client = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    client.sendall(REQUEST)
    assert client.recv(65536).startswith(b"HTTP/1.1 200 OK")
    stopping_while_the_loop_is_busy(server, lambda: client.sendall(REQUEST))
    assert everything(client).startswith(b"HTTP/1.1 200 OK")
    client.close()
    finish(server)


def test_calls_at_the_end_are_refused_and_not_cancelled(start: Start) -> None:
    server = start({"linear": "linear"})
    request = message_classes()["ModelInferRequest"](
        model_name="linear",
        inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 3], "contents": {"fp32_contents": [1, 0, 2]}}],
    ).SerializeToString()
    ends: list[grpc.StatusCode] = []

    def ask() -> None:
        with grpc.insecure_channel(server.grpc) as channel:
            call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            while True:
                try:
                    call(request, timeout=20)
                except grpc.RpcError as error:
                    ends.append(error.code())
                    return

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    server.stop()
    for thread in threads:
        thread.join(20)
    assert ends == [grpc.StatusCode.UNAVAILABLE] * 8
