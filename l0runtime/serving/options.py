"""What can an operator of a server set, and which values have a meaning?"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from l0runtime.errors import OptionError


@dataclass(frozen=True)
class Limits:
    """Bounds that keep one client, or all together, from taking the server down.

    Attributes:
        body_bytes: largest request body, or gRPC message; a larger one is refused with 413.
        head_bytes: largest request line and headers together; more is refused with 431.
        queue: requests of one model that may wait; one more is refused with 429.
        batch_rows: rows merged into one run; a single larger request runs by itself.
        deadline_s: time from a request's arrival in the queue to its answer; past it, 504.
        receive_s: time for a request to arrive whole, and for a client to take any of its answer; past it, the
            connection is closed, with 408 where nothing has been answered yet.
        idle_s: time that a connection may stay open without a request.
        connections: open at a time, over REST; calls at a time, over gRPC. One more is refused with 503.
    """

    body_bytes: int = 64 * 2**20
    head_bytes: int = 64 * 2**10
    queue: int = 1024
    batch_rows: int = 32
    deadline_s: float = 30.0
    receive_s: float = 30.0
    idle_s: float = 75.0
    connections: int = 2048

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if value <= 0:
                raise OptionError(f"{entry.name} = {value}: expected more than 0.")


@dataclass(frozen=True)
class ServeOptions:
    """How a server runs.

    Attributes:
        host: address to listen on; loopback unless said otherwise.
        port: of REST; 0 for any free one.
        grpc_port: of gRPC; 0 for any free one, None for no gRPC.
        device: as for `l0runtime.load`.
        threads: threads inside an operator; onnxruntime's choice if None.
        allow_cpu_nodes: accept that part of a GPU model runs on the CPU.
        token: what clients must send as `Authorization: Bearer <token>`; None for no check.
        tls_certificate, tls_key: PEM files; both or neither.
        reload_s: how often files are looked at for a replacement; 0 for never.
        drain_s: after SIGTERM, how long new connections are still answered, so that balancers can turn away.
        shutdown_s: how long requests in work may take to finish after that.
        log_requests: one log line for every request, not only for failures.
        limits: see there.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = 8001
    device: str = "cuda"
    threads: int | None = None
    allow_cpu_nodes: bool = False
    token: str | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    reload_s: float = 1.0
    drain_s: float = 1.0
    shutdown_s: float = 30.0
    log_requests: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name, port in (("port", self.port), ("grpc_port", self.grpc_port)):
            if port is not None and not 0 <= port < 2**16:
                raise OptionError(f"{name} = {port}: expected 0 to 65535.")
        if self.port and self.port == self.grpc_port:
            raise OptionError(f"port = grpc_port = {self.port}: REST and gRPC need a port each.")
        for name, seconds in (
            ("reload_s", self.reload_s),
            ("drain_s", self.drain_s),
            ("shutdown_s", self.shutdown_s),
        ):
            if seconds < 0:
                raise OptionError(f"{name} = {seconds}: expected at least 0.")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise OptionError("TLS needs both a certificate and a key; only one is given.")
        if self.token is not None and (not self.token or not self.token.isascii() or self.token != self.token.strip()):
            raise OptionError("the token is empty, or holds spaces around it or characters outside ASCII.")
