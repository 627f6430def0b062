"""Which faults of clients is a server tried with, and which answer is right for each?

The model: x [N, 3] of FP32, y [N, 2]. The server's limits are those of `LIMITS`. An answer is a status, or CLOSED where
a connection that never became a request is ended without a word.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

RECEIVE_S, IDLE_S = 1.0, 2.0
BODY_BYTES, HEAD_BYTES = 1_000_000, 65_536
LIMITS = ("--receive-timeout", str(RECEIVE_S), "--idle-timeout", str(IDLE_S), "--max-body", str(BODY_BYTES))
CLOSED = 0
PATH = "/v2/models/linear/infer"
ROW: dict[str, Any] = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 0, 2]}
GOOD = json.dumps({"inputs": [ROW]}).encode()

Ask = Callable[[socket.socket], None]


@dataclass(frozen=True)
class Fault:
    """A fault of a client.

    Attributes:
        kind: which family it belongs to.
        name: what is wrong.
        ask: does it, on a connection just made; the answer is read afterwards.
        expected: the statuses that are right.
    """

    kind: str
    name: str
    ask: Ask
    expected: tuple[int, ...]


def request(body: bytes, *headers: str, method: str = "POST", path: str = PATH, length: int | None = None) -> bytes:
    """A request with a declared length, the body's own unless given."""
    lines = [f"{method} {path} HTTP/1.1", "Host: a", f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + body


def send(content: bytes) -> Ask:
    """Send it all, and wait for the answer."""
    return lambda client: client.sendall(content)


def send_and_end(content: bytes) -> Ask:
    """Send it all, then end the sending half of the connection."""

    def ask(client: socket.socket) -> None:
        client.sendall(content)
        client.shutdown(socket.SHUT_WR)

    return ask


def send_slowly(content: bytes, pause_s: float, pieces: int) -> Ask:
    """Send it in equal pieces."""

    def ask(client: socket.socket) -> None:
        size = -(-len(content) // pieces)
        for at in range(0, len(content), size):
            try:
                client.sendall(content[at : at + size])
            except OSError:  # the server has ended the connection; its answer is read all the same
                return
            time.sleep(pause_s)

    return ask


def of(document: Any, *headers: str) -> Ask:
    """Send a JSON document."""
    return send(request(json.dumps(document).encode(), *headers))


def with_row(**changes: Any) -> Ask:
    """Send the good request with its tensor changed; None takes a field away."""
    row = {name: value for name, value in (ROW | changes).items() if value is not None}
    return of({"inputs": [row]})


def binary(values: bytes, size: Any, shape: list[Any], json_length: int | str | None = None) -> Ask:
    """Send binary tensors with the sizes that are given."""
    row = {"name": "x", "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [row]}).encode()
    length = len(head) if json_length is None else json_length
    return send(request(head + values, f"Inference-Header-Content-Length: {length}"))


def faults() -> Iterator[Fault]:
    """All of them."""
    good = request(GOOD)
    half = len(good) - len(GOOD) // 2

    def case(kind: str, name: str, ask: Ask, *expected: int) -> Fault:
        return Fault(kind, name, ask, expected)

    yield case("none", "a good request", send(good), 200)
    yield case("half-open", "nothing is ever sent", lambda client: None, CLOSED)
    yield case("half-open", "half a request line", send(good[:9]), 408)
    yield case("half-open", "a head without its end", send(good[:50]), 408)
    yield case("half-open", "a head, and no body", send(good[: -len(GOOD)]), 408)
    yield case("half-open", "half a chunk", send(request(b"5\r\nab", "Transfer-Encoding: chunked")), 400, 408)
    yield case("slow", "a byte every 5 ms, in time", send_slowly(good, 0.005, len(good) // 2), 200)
    yield case("slow", "a piece every 0.4 s, too slow in all", send_slowly(good, 0.4, 8), 408)
    endless = good[: good.index(b"Host")] + b"X: " + b"a" * 400
    yield case("slow", "an endless header, 0.2 s a piece", send_slowly(endless, 0.2, 12), 408)
    yield case("cut off", "half a body, and the sending half ends", send_and_end(good[:half]), CLOSED, 400, 408)
    yield case("cut off", "a whole request, and the sending half ends", send_and_end(good), 200)
    yield case("cut off", "a body longer than declared", send(request(GOOD, length=len(GOOD) - 5)), 400)
    shapes = [[3], [1, 4], [0, 3], [1, 3, 1], [], [-1, 3], [1.0, 3], ["1", 3], [True, 3], [2, 3], [1, 2**63], 3, {}]
    for shape in shapes:
        yield case("wrong shape", f"shape {shape}", with_row(shape=shape), 400)
    yield case("wrong shape", "no shape", with_row(shape=None), 400)
    yield case("wrong shape", "sizes whose product is beyond 64 bits", with_row(shape=[2**40, 2**40]), 400)
    yield case("wrong shape", "40 dimensions", with_row(shape=[1] * 39 + [3]), 400)
    yield case("wrong shape", "nested otherwise than its shape", with_row(data=[[1], [0], [2]]), 400)
    for datatype in ("FP64", "INT32", "BYTES", "fp32", "", 32, None, "FP32 "):
        yield case("dtype confusion", f"datatype {datatype!r}", with_row(datatype=datatype), 400)
    for value in ("1", True, None, 1e39, 10**400, {}, []):
        yield case("dtype confusion", f"a value of {str(value)[:20]!r}", with_row(data=[value, 0, 2]), 400)
    yield case("dtype confusion", "data in text", with_row(data="102"), 400)
    yield case("dtype confusion", "binary values of half the size", binary(b"\0" * 6, 6, [1, 3]), 400)
    yield case("dtype confusion", "a size of -12", binary(b"\0" * 12, -12, [1, 3]), 400)
    yield case("dtype confusion", "a size in text", binary(b"\0" * 12, "12", [1, 3]), 400)
    yield case("huge size", "a body of 10**15 bytes declared", send(request(b"", length=10**15)), 413)
    yield case("huge size", "a body of 10**23 bytes declared", send(request(b"", length=10**23)), 400)
    yield case("huge size", "a body of -1 bytes declared", send(request(b"", length=-1)), 400)
    yield case("huge size", "a body over the limit, sent", send(request(b" " * (BODY_BYTES + 1))), 413)
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    endless = b"POST %s HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" % PATH.encode() + chunk * 40
    yield case("huge size", "chunks without an end", send(endless), 413)
    huge = endless[: -len(chunk) * 40] + b"4" + b"0" * 15 + b"\r\n"
    yield case("huge size", "a chunk of 2**62 bytes declared", send(huge), 413, 408)
    yield case("huge size", "10**18 bytes of values declared", binary(b"\0" * 12, 10**18, [1, 3]), 400)
    yield case("huge size", "10**18 bytes, and the shape to it", binary(b"\0" * 12, 12 * 10**17, [10**17, 3]), 400)
    yield case("huge size", "the JSON said to be 10**17 bytes long", binary(b"\0" * 12, 12, [1, 3], 10**17), 400)
    yield case(
        "huge size", "the JSON said to be 10**40 bytes long", binary(b"\0" * 12, 12, [1, 3], "1" + "0" * 40), 400
    )
    yield case("huge size", "a shape of 10**18 rows in JSON", with_row(shape=[10**18, 3]), 400)
    many = [f"X-{i}: {'a' * 900}" for i in range(80)]
    yield case("huge size", "headers over the limit", send(request(GOOD, *many)), 431)
    yield case("huge size", "an address over the limit", send(b"GET /" + b"a" * (HEAD_BYTES + 1)), 431)
    tensor = b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":['
    for name, bomb in (
        ("lists", b"[" * 400_000),
        ("lists, closed", b"[" * 400_000 + b"]" * 400_000),
        ("objects", b'{"a":' * 150_000),
        ("lists behind a NaN", b"[NaN," + b"[" * 400_000),
        ("data of the right tensor", tensor + b"[" * 400_000),
        ("a number of 400,000 digits", tensor + b"9" * 400_000 + b",0,2]}]}"),
        ("an id of a megabyte", b'{"id":"' + b"a" * 900_000 + b'"}'),
        ("100,000 inputs", b'{"inputs":[' + b"{}," * 100_000 + b"{}]}"),
    ):
        yield case("JSON bomb", name, send(request(bomb)), 400)
    yield case("JSON bomb", "300,000 values for one row", with_row(data=[0] * 300_000), 400)
    for name, content in (
        ("empty", b""),
        ("null", b"null"),
        ("a list", b"[]"),
        ("not UTF-8", b'{"id":"\xff"}'),
        ("half a surrogate pair", b'{"id":"\\ud800","inputs":[]}'),
        ("a trailing comma", GOOD[:-1] + b",}"),
        ("two documents", GOOD + GOOD),
        ("no inputs", b"{}"),
        ("an input twice", json.dumps({"inputs": [ROW, ROW]}).encode()),
        ("another input", json.dumps({"inputs": [ROW | {"name": "z"}]}).encode()),
        ("another output", json.dumps({"inputs": [ROW], "outputs": [{"name": "z"}]}).encode()),
        ("shared memory", json.dumps({"inputs": [ROW | {"parameters": {"shared_memory_region": "a"}}]}).encode()),
    ):
        yield case("malformed", name, send(request(content)), 400)
    yield case("malformed", "compressed", send(request(GOOD, "Content-Encoding: gzip")), 415)
    yield case("malformed", "another model", send(request(GOOD, path="/v2/models/absent/infer")), 404)
    yield case("malformed", "another version", send(request(GOOD, path="/v2/models/linear/versions/7/infer")), 404)
    yield case("malformed", "GET", send(request(b"", method="GET")), 405)
    yield case("no HTTP", "TLS", send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), 400)
    yield case("no HTTP", "HTTP/2", send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 400)
    yield case("no HTTP", "zeros", send(b"\0" * 4096), 400)
    yield case("no HTTP", "two lengths", send(request(GOOD, "Content-Length: 7")), 400)
    yield case("no HTTP", "a length and chunks", send(request(GOOD, "Transfer-Encoding: chunked")), 400)
