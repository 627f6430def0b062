"""How does a server stop taking requests without losing one that a client has sent already?

Closing a listening socket resets the connections that wait in it, and grpc cancels the calls that wait to be taken. So
the first are taken before the socket is closed, and the second are answered for a moment with a refusal: UNAVAILABLE
says that a call was not run, where CANCELLED leaves its client in doubt.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uvicorn

_TURNS = 4  # of the loop, until a connection that it has accepted is served
_FIRST_BYTES_S = 0.5  # for the first request on a connection that was just made
GRPC_REFUSAL_S = 0.25  # for calls that are on their way


async def stop_listening(server: uvicorn.Server, listening: socket.socket) -> None:
    """Close the listening socket; requests on all connections that were made until then are still answered.

    Args:
        server: started on `listening`; it goes on answering.
    """
    loop = asyncio.get_running_loop()
    # asyncio forgets a connection that it has accepted but not begun to serve when its server is closed: no new ones
    # then, and a few turns for those. uvloop does both in one step, and knows no reader here.
    with contextlib.suppress(NotImplementedError):
        loop.remove_reader(listening)
    for _ in range(_TURNS):
        await asyncio.sleep(0)
    waiting: list[socket.socket] = []
    while True:
        try:
            waiting.append(listening.accept()[0])
        except OSError:  # none is left
            break
    for one in server.servers:
        one.close()
    listening.close()
    await asyncio.gather(*(_answer_on(server, connection) for connection in waiting), return_exceptions=True)
    end = time.monotonic() + _FIRST_BYTES_S
    connections = server.server_state.connections
    while any(getattr(one, "is_new", False) for one in connections) and time.monotonic() < end:
        await asyncio.sleep(0.01)


async def _answer_on(server: uvicorn.Server, connection: socket.socket) -> None:
    """What uvicorn does with a connection that it takes itself."""
    config = server.config
    connection.setblocking(False)
    await asyncio.get_running_loop().connect_accepted_socket(
        lambda: config.http_protocol_class(  # type: ignore[call-arg]
            config=config, server_state=server.server_state, app_state=server.lifespan.state
        ),
        connection,
        ssl=config.ssl,
    )
