"""Which load does a server bear? Closed-loop HTTP clients on one event loop, each answer checked.

The client is kept so light (a fixed request, a search for two header fields, uvloop, each distinct answer to a request
compared once) that the servers are what is measured; `compare.py` records how many cores it kept busy.
A request counts as lost if its connection ended before the whole answer, as refused if the connection was refused
before anything was sent, and as wrong if the answer's values or status are not the expected ones.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

_REMEMBERED = 64  # sums in another order give a few distinct answers
Check = Callable[[bytes, bytes], bool]  # head and body of an answer


@dataclass
class Exchange:
    """A request that is sent again and again, and what tells a right answer."""

    request: bytes
    check: Check
    right: set[bytes] = field(default_factory=set)  # answers, byte by byte, that have passed the check

    def is_right(self, head: bytes, body: bytes) -> bool:
        """Whether an answer is right; one that is equal to an earlier right one is."""
        answer = head[:12] + body  # the status, and all of the body
        if answer in self.right:
            return True
        if not self.check(head, body):
            return False
        if len(self.right) < _REMEMBERED:
            self.right.add(answer)
        return True


@dataclass
class Outcome:
    """What a run of clients saw."""

    answered: int = 0
    wrong: int = 0
    lost: int = 0
    refused: int = 0
    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    first_wrong: str = ""

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.answered / self.seconds if self.seconds else 0.0


def unchunked(buffer: bytes, at: int) -> bytes | None:
    """A body in chunks that starts at `at`; None if it is not there whole."""
    if not buffer.endswith(b"0\r\n\r\n"):
        return None
    parts = []
    while at < len(buffer):
        line = buffer.find(b"\r\n", at)
        size = int(buffer[at:line], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(buffer[line + 2 : line + 2 + size])
        at = line + 4 + size
    return None


class _Connection(asyncio.Protocol):
    def __init__(self, client: _Client) -> None:
        self._client = client
        self._buffer = b""
        self._needed = -1  # bytes of head and body together, -1 until the head is known, 0 for a body in chunks
        self._head_end = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._client.send(self)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if self._needed < 0:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[:end].lower()
            self._head_end = end
            if b"transfer-encoding: chunked" in head:
                self._needed = 0
        if self._needed < 0:
            at = head.find(b"content-length:", head.find(b"\r\n"))
            while at >= 0 and head[at - 1 : at] != b"\n":  # inference-header-content-length ends alike
                at = head.find(b"content-length:", at + 1)
            stop = head.find(b"\r\n", at)
            self._needed = end + 4 + int(head[at + 15 : stop if stop >= 0 else len(head)])
        if self._needed == 0:
            body = unchunked(self._buffer, self._head_end + 4)
        elif len(self._buffer) >= self._needed:
            body = self._buffer[self._head_end + 4 : self._needed]
        else:
            body = None
        if body is not None:
            head, self._buffer, self._needed = self._buffer[: self._head_end], b"", -1
            self._client.received(self, head, body)

    def connection_lost(self, error: Exception | None) -> None:
        self._client.lost(self)


class _Client:
    """One client: sends its next request when the last one is answered."""

    def __init__(
        self,
        host: str,
        port: int,
        exchanges: list[Exchange],
        outcome: Outcome,
        until: float,
        most: int,
        reconnects: bool,
    ) -> None:
        self._where = (host, port)
        self._exchanges, self._outcome, self._until, self._most = exchanges, outcome, until, most
        self._reconnects = reconnects
        self._next = 0
        self._sent_at = 0.0
        self._waits = False
        self.done: asyncio.Event = asyncio.Event()

    async def start(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: _Connection(self), *self._where)
        except OSError:
            self._outcome.refused += 1
            self.done.set()

    def send(self, connection: _Connection) -> None:
        self._exchange = self._exchanges[self._next % len(self._exchanges)]
        self._next += 1
        self._waits = True
        self._sent_at = time.perf_counter()
        connection.transport.write(self._exchange.request)

    def received(self, connection: _Connection, head: bytes, body: bytes) -> None:
        now = time.perf_counter()
        self._waits = False
        outcome = self._outcome
        outcome.answered += 1
        outcome.latencies_ms.append((now - self._sent_at) * 1e3)
        if not self._exchange.is_right(head, body):
            outcome.wrong += 1
            outcome.first_wrong = outcome.first_wrong or f"{head!r} {body[:200]!r}"
        if b"connection: close" in head.lower():
            return  # the server takes its leave, and closes the connection
        if now >= self._until or outcome.answered >= self._most:
            connection.transport.close()
            return
        self.send(connection)

    def lost(self, connection: _Connection) -> None:
        if self._waits:
            self._outcome.lost += 1
        elif self._reconnects and time.perf_counter() < self._until and self._outcome.answered < self._most:
            self._again = asyncio.ensure_future(self.start())
            return
        self.done.set()


async def run_clients(
    host: str,
    port: int,
    exchanges: list[list[Exchange]],
    *,
    seconds: float,
    most: int = 10**9,
    reconnects: bool = False,
) -> Outcome:
    """Run one client for each list of exchanges.

    Args:
        seconds: after which no client sends again.
        most: answers in all after which no client sends again.
        reconnects: whether a client whose connection the server ended with an answer opens another; it stops where
            that is refused.
    """
    outcome = Outcome()
    started = time.perf_counter()
    clients = [_Client(host, port, own, outcome, started + seconds, most, reconnects) for own in exchanges]
    await asyncio.gather(*(client.start() for client in clients))
    await asyncio.gather(*(client.done.wait() for client in clients))
    outcome.seconds = time.perf_counter() - started
    return outcome


def on_loop(clients: Coroutine[Any, Any, T]) -> T:
    """Run to the end on an event loop: uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(clients)
    return uvloop.run(clients)


def percentile(values: list[float], share: float) -> float:
    """The value below which that share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
