"""How is a client that stalls, never ends, or never reads kept from holding the server?

uvicorn times only the pause between two requests. This protocol also notes when a message began and how large its
head is, and a sweep over all connections, a few times a second, closes those past a limit: no timer for each request.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from l0runtime.serving.options import Limits


class _RefusedError(Exception):
    """Ends the parser's work on what came; the refusal has been sent."""


class _HeadWithBody:
    """A transport that sends an answer's head and the first of its body together.

    uvicorn writes them apart: two system calls, and two awakenings of the client.
    """

    __slots__ = ("_head", "_is_head_sent", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self._is_head_sent = False

    def write(self, data: bytes) -> None:
        if self._is_head_sent:
            self._transport.write(data)
        elif self._head:
            self._is_head_sent = True
            self._transport.writelines((self._head, data))
        elif data.startswith(b"HTTP/1.1 100"):  # the client waits for leave to send its body
            self._transport.write(data)
        else:
            self._head = data

    def close(self) -> None:
        if self._head and not self._is_head_sent:
            self._transport.write(self._head)
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP connection with limits on time and size of what arrives.

    Attributes:
        limits: set on a subclass by `guarded_protocol`.
    """

    limits = Limits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._opened = time.monotonic()
        self._message_began: float | None = None  # None between messages
        self._is_unused = True
        self._in_head = False
        self._head_bytes, self._chunk_bytes = 0, 0
        self._unsent, self._unsent_since = 0, 0.0
        super().connection_made(transport)
        # the new one is turned away, not those that are being served
        self._is_one_too_many = len(self.connections) > self.limits.connections

    def data_received(self, data: bytes) -> None:
        self._chunk_bytes = len(data)
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.head_bytes:
                self._refuse_head()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more; a request that came whole is answered all the same.

        Returns:
            whether to keep the connection for that. TLS knows no such half.
        """
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete or self._message_began is not None or self.scheme == "https":
            return False
        cycle.keep_alive = False
        return True

    def on_message_begin(self) -> None:
        self._message_began = time.monotonic()
        self._is_unused = False
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._is_one_too_many:
            self._refuse(503, f"{self.limits.connections} connections are open already; try again later.")
            raise _RefusedError
        # only a head that came at once can be too large here: one in pieces is refused as it comes
        if self._chunk_bytes > self.limits.head_bytes:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self.limits.head_bytes:
                self._refuse_head()
                raise _RefusedError
        self._in_head = False
        before: Any = self.cycle
        super().on_headers_complete()
        if self.cycle is not before and self.scope["method"] != "HEAD":  # whose answer has no body
            self.cycle.transport = _HeadWithBody(self.transport)  # type: ignore[assignment]

    def on_message_complete(self) -> None:
        self._message_began = None
        super().on_message_complete()

    def shutdown(self) -> None:
        """End the connection, after the answer to the request on it, also where that has not been read yet."""
        if self._message_began is None and self._has_unread():
            return  # read in this turn of the loop; the answer says that it is the last
        super().shutdown()

    @property
    def is_new(self) -> bool:
        """Whether nothing has come on it yet."""
        return self._is_unused

    def _has_unread(self) -> bool:
        found = self.transport.get_extra_info("socket")
        if found is None or sys.platform == "win32":
            return False
        try:
            # a copy, since what uvloop lends has no recv
            with socket.socket(fileno=os.dup(found.fileno())) as copy:
                return bool(copy.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:  # nothing there
            return False

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is not HTTP/1.1 as the standard has it.")

    def sweep(self, now: float) -> None:
        """Close the connection if its client has let a limit pass.

        Args:
            now: of `time.monotonic`.
        """
        unsent = self.transport.get_write_buffer_size()
        if unsent != self._unsent or not unsent:
            self._unsent, self._unsent_since = unsent, now
        elif now - self._unsent_since > self.limits.receive_s:
            self.transport.abort()  # the client does not take its answer
            return
        if self.transport.is_closing():
            return
        if self._message_began is not None:
            if now - self._message_began > self.limits.receive_s:
                self._refuse(408, f"the request did not arrive whole within {self.limits.receive_s:g} seconds.")
        elif self._is_unused and now - self._opened > self.limits.idle_s:
            self.transport.close()  # opened, and nothing ever came

    def _refuse_head(self) -> None:
        self._refuse(431, f"the headers are larger than this server's limit of {self.limits.head_bytes} bytes.")

    def _is_answered(self) -> bool:
        """Whether an answer to the message that arrives now has been begun."""
        if self._in_head:
            return False
        cycle: Any = self.cycle  # None before the first request, whatever uvicorn declares
        return cycle is not None and cycle.response_started

    def _refuse(self, status: int, message: str) -> None:
        """Answer at once, unless this message has been answered already, and close.

        A refused body (413) is one that has been: it is read and dropped, since closing on a client that still sends
        would make its system throw the answer away.
        """
        if self.transport.is_closing():
            return
        if not self._is_answered():
            content = orjson.dumps({"error": message})
            later = "retry-after: 1\r\n" if status == 503 else ""
            head = (
                f"HTTP/1.1 {status} {_PHRASES[status]}\r\ncontent-type: application/json\r\n{later}"
                f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + content)
        self.transport.close()


_PHRASES = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


def guarded_protocol(limits: Limits) -> type[GuardedProtocol]:
    """The protocol with its limits, as uvicorn wants it: a class."""
    return type("LimitedProtocol", (GuardedProtocol,), {"limits": limits})


async def sweep_regularly(connections: set[Any], limits: Limits) -> None:
    """Look at all connections until cancelled."""
    every_s = min(0.5, limits.receive_s / 4, limits.idle_s / 4)
    while True:
        await asyncio.sleep(every_s)
        now = time.monotonic()
        for connection in list(connections):
            try:
                connection.sweep(now)
            except Exception:  # one that cannot even be looked at must not end the watch over all others
                connection.transport.abort()
