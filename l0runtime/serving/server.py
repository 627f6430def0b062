"""How does a server start, and how does it stop without losing a request?

Stopping, after SIGTERM:
1. Readiness turns to no, and each answer ends its connection; new connections are still answered for `drain_s`, so
   that a balancer has time to notice.
2. No connection is taken any more, see `leaving`; what was sent is finished, for up to `shutdown_s`.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import uvicorn

from l0runtime.errors import OptionError
from l0runtime.serving.access import check_tls_files
from l0runtime.serving.connections import guarded_protocol, sweep_regularly
from l0runtime.serving.grpc_service import GrpcService
from l0runtime.serving.leaving import GRPC_REFUSAL_S, stop_listening
from l0runtime.serving.logs import EventLog
from l0runtime.serving.metrics import Metrics
from l0runtime.serving.models import ModelRepository
from l0runtime.serving.options import ServeOptions
from l0runtime.serving.reloading import Reloader
from l0runtime.serving.rest import RestApp

_OTHER_FILES = 256  # models, libraries, logs
_LOOPBACK = ("127.", "::1", "localhost")


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own handling of signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server:
    """Models on the network, inside a running event loop.

    Args:
        models: name to .onnx file.
        options: how to run.
        log: where events go; stderr by default.

    Attributes:
        rest_address: such as "http://127.0.0.1:8000", once started.
        grpc_address: such as "127.0.0.1:8001"; None without gRPC.
        repository: the models, once started.
    """

    def __init__(self, models: Mapping[str, Path], options: ServeOptions, log: EventLog | None = None) -> None:
        self._paths, self._options = dict(models), options
        self._log = log or EventLog()
        self.rest_address = ""
        self.grpc_address: str | None = None
        self.repository = ModelRepository({})
        self._grpc: Any = None
        self._grpc_service: GrpcService | None = None
        self._listening: socket.socket | None = None
        self._uvicorn: _Uvicorn | None = None
        self._uvicorn_task: asyncio.Task[None] | None = None
        self._watchers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Load the models, then listen.

        Raises:
            L0RuntimeError: a model or an option is unfit; nothing listens then.
        """
        options = self._options
        tls = check_tls_files(options)
        listening = _listening_socket(options)
        try:
            metrics = Metrics()
            self.repository = await ModelRepository.load(self._paths, options, metrics)
            for model in self.repository.models.values():
                self._log.info(
                    "model_loaded",
                    model=model.name,
                    path=str(model.path),
                    verified=model.revision.verified,
                    merges_requests=model.revision.not_merged is None,
                    **({} if model.revision.not_merged is None else {"reason": model.revision.not_merged}),
                )
            if options.grpc_port is not None:
                await self._start_grpc(options.grpc_port, tls)
        except BaseException:
            listening.close()
            self.repository.close()
            raise
        await self._start_rest(listening, metrics)
        self._watchers.append(asyncio.create_task(self.repository.expire_regularly()))
        if options.reload_s:
            self._watchers.append(asyncio.create_task(Reloader(self.repository, options, self._log).watch()))
        self.repository.is_ready = True
        if options.token is None and not options.host.startswith(_LOOPBACK):
            self._log.warning("open_to_the_network", host=options.host, advice="set a token and TLS")
        self._log.info("listening", rest=self.rest_address, grpc=self.grpc_address, models=list(self._paths))

    async def stop(self, *, drain: bool = True) -> None:
        """Finish what is in work, then close everything.

        Args:
            drain: answer new connections for `drain_s` first.
        """
        self._log.info("stopping", drain=drain)
        self.repository.is_ready = False
        assert self._uvicorn is not None
        self._uvicorn.config.encoded_headers.append((b"connection", b"close"))
        self._uvicorn.server_state.default_headers = list(self._uvicorn.config.encoded_headers)
        if drain:
            await asyncio.sleep(self._options.drain_s)
        await asyncio.gather(self._stop_rest(), self._stop_grpc())
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        self.repository.close()
        self._log.info("stopped")

    async def _stop_rest(self) -> None:
        assert self._uvicorn is not None
        assert self._uvicorn_task is not None
        assert self._listening is not None
        await stop_listening(self._uvicorn, self._listening)
        self._uvicorn.should_exit = True
        await self._uvicorn_task

    async def _stop_grpc(self) -> None:
        if self._grpc is None or self._grpc_service is None:
            return
        self._grpc_service.refuses = True
        await asyncio.sleep(GRPC_REFUSAL_S)
        await self._grpc.stop(self._options.shutdown_s)

    async def _start_grpc(self, port: int, tls: tuple[bytes, bytes] | None) -> None:
        options = self._options
        self._grpc = grpc.aio.server(
            maximum_concurrent_rpcs=options.limits.connections,
            options=[
                ("grpc.max_receive_message_length", options.limits.body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", options.limits.head_bytes),
                ("grpc.so_reuseport", 0),
                # clients that connect and say nothing, that are gone without a word, and that ask no more
                ("grpc.server_handshake_timeout_ms", max(1, round(options.limits.receive_s * 1e3))),
                ("grpc.keepalive_time_ms", max(1, round(options.limits.idle_s * 1e3))),
                ("grpc.max_connection_idle_ms", max(1, round(options.limits.idle_s * 1e3))),
            ],
        )
        self._grpc_service = GrpcService(self.repository, options, self._log)
        self._grpc.add_generic_rpc_handlers([self._grpc_service.handler()])
        host = f"[{options.host}]" if ":" in options.host else options.host
        try:
            if tls is None:
                bound = self._grpc.add_insecure_port(f"{host}:{port}")
            else:
                bound = self._grpc.add_secure_port(f"{host}:{port}", grpc.ssl_server_credentials([tls]))
        except RuntimeError as error:
            raise OptionError(f"gRPC cannot listen on {host}:{port} ({error}). Choose another port.") from error
        await self._grpc.start()
        self.grpc_address = f"{host}:{bound}"

    async def _start_rest(self, listening: socket.socket, metrics: Metrics) -> None:
        options = self._options
        self._listening = listening
        config = uvicorn.Config(
            RestApp(self.repository, options, self._log, metrics.page),
            http=guarded_protocol(options.limits),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            backlog=2048,
            timeout_keep_alive=max(1, round(options.limits.idle_s)),
            timeout_graceful_shutdown=max(1, round(options.shutdown_s)),
            ssl_certfile=None if options.tls_certificate is None else str(options.tls_certificate),
            ssl_keyfile=None if options.tls_key is None else str(options.tls_key),
        )
        self._uvicorn = _Uvicorn(config)
        self._uvicorn_task = asyncio.create_task(self._uvicorn.serve(sockets=[listening]))
        while not self._uvicorn.started:
            if self._uvicorn_task.done():
                await self._uvicorn_task
            await asyncio.sleep(0.005)
        self._watchers.append(
            asyncio.create_task(sweep_regularly(self._uvicorn.server_state.connections, options.limits))
        )
        host, port = listening.getsockname()[:2]
        scheme = "http" if options.tls_certificate is None else "https"
        self.rest_address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


async def serve(models: Mapping[str, Path], options: ServeOptions, log: EventLog | None = None) -> None:
    """Serve until SIGTERM, or SIGINT, which does not drain. A second signal ends at once."""
    log = log or EventLog()
    _raise_file_limit(options.limits.connections, log)
    loop = asyncio.get_running_loop()
    caught: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        if sys.platform == "win32":
            signal.signal(number, lambda found, _: loop.call_soon_threadsafe(caught.put_nowait, found) and None)
        else:
            loop.add_signal_handler(number, caught.put_nowait, int(number))
    server = Server(models, options, log)
    await server.start()
    first = await caught.get()
    stopping = asyncio.create_task(server.stop(drain=first == signal.SIGTERM))
    again = asyncio.create_task(caught.get())
    await asyncio.wait({stopping, again}, return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    if not stopping.done():
        stopping.cancel()
        log.warning("stopped_at_once", reason="a second signal; what was in work is lost")
        return
    await stopping


def run_server(models: Mapping[str, Path], options: ServeOptions, log: EventLog | None = None) -> None:
    """`serve` in an event loop of its own: uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(models, options, log))
        return
    uvloop.run(serve(models, options, log))


def _raise_file_limit(connections: int, log: EventLog) -> None:
    """Ask the system for as many open files as connections need; say so where it does not give them."""
    try:
        import resource
    except ImportError:  # not POSIX
        return
    wanted = 2 * connections + _OTHER_FILES  # over REST and over gRPC
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        given = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (given, hard))
        if given < wanted:
            log.warning(
                "few_open_files", wanted=wanted, given=given, advice="raise ulimit -n or lower --max-connections"
            )


def _listening_socket(options: ServeOptions) -> socket.socket:
    """A bound socket: the port is known, and taken, before any model is loaded.

    Raises:
        OptionError: the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setblocking(False)
        try:
            if sys.platform != "win32":
                found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except OSError:
            found.close()
            raise
    except OSError as error:
        raise OptionError(
            f"REST cannot listen on {options.host}:{options.port} ({error}). Choose another port."
        ) from error
    return found
