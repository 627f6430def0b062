"""`l0runtime serve`: answer the Open Inference Protocol over REST and gRPC."""

from __future__ import annotations

import os
from pathlib import Path

import click

from l0runtime.errors import OptionError
from l0runtime.serving.extra import check_serve_extra
from l0runtime.serving.options import Limits, ServeOptions

_TOKEN_VARIABLE = "L0RUNTIME_TOKEN"
_LIMITS, _OPTIONS = Limits(), ServeOptions()


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="[NAME=]MODEL...")
@click.option("--host", default=_OPTIONS.host, show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", default=_OPTIONS.port, show_default=True, help="Port of REST; 0 for any free one.")
@click.option("--grpc-port", default=_OPTIONS.grpc_port, show_default=True, help="Port of gRPC; 0 for any free one.")
@click.option("--no-grpc", is_flag=True, help="REST only.")
@click.option("--device", default="cuda", show_default=True, help="cuda, cuda:1, tensorrt or cpu; never falls back.")
@click.option("--threads", type=int, help="Threads inside an operator; onnxruntime's choice by default.")
@click.option("--allow-cpu-nodes", is_flag=True, help="Accept that part of a GPU model runs on the CPU.")
@click.option(
    "--token-file", type=click.Path(path_type=Path), help=f"Bearer token; else ${_TOKEN_VARIABLE}, else none."
)
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Certificate, PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its key, PEM.")
@click.option(
    "--reload", default=_OPTIONS.reload_s, show_default=True, help="Seconds between looks for replaced files; 0: never."
)
@click.option("--max-body", default=_LIMITS.body_bytes, show_default=True, help="Largest request, bytes.")
@click.option("--max-batch", default=_LIMITS.batch_rows, show_default=True, help="Rows merged into one run.")
@click.option("--max-queue", default=_LIMITS.queue, show_default=True, help="Requests of a model that may wait.")
@click.option("--max-connections", default=_LIMITS.connections, show_default=True, help="Connections at a time.")
@click.option("--deadline", default=_LIMITS.deadline_s, show_default=True, help="Seconds until an answer is given up.")
@click.option(
    "--receive-timeout", default=_LIMITS.receive_s, show_default=True, help="Seconds for a request to arrive."
)
@click.option(
    "--idle-timeout", default=_LIMITS.idle_s, show_default=True, help="Seconds that a connection may stay unused."
)
@click.option(
    "--drain", default=_OPTIONS.drain_s, show_default=True, help="Seconds of taking connections after SIGTERM."
)
@click.option(
    "--shutdown-timeout", default=_OPTIONS.shutdown_s, show_default=True, help="Seconds to finish after that."
)
@click.option("--log-requests", is_flag=True, help="Log every request.")
def command(
    models: tuple[str, ...],
    host: str,
    port: int,
    grpc_port: int,
    no_grpc: bool,
    device: str,
    threads: int | None,
    allow_cpu_nodes: bool,
    token_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    reload: float,
    max_body: int,
    max_batch: int,
    max_queue: int,
    max_connections: int,
    deadline: float,
    receive_timeout: float,
    idle_timeout: float,
    drain: float,
    shutdown_timeout: float,
    log_requests: bool,
) -> None:
    """Serve each MODEL over the Open Inference Protocol version 2, REST and gRPC, until SIGTERM.

    A model's name is its file's, without the suffix, unless NAME= says otherwise. A replaced file takes over once
    it is verified. Logs go to stderr, one JSON object a line.
    """
    check_serve_extra()
    from l0runtime.serving.access import read_token
    from l0runtime.serving.server import run_server

    token = os.environ.get(_TOKEN_VARIABLE) if token_file is None else read_token(token_file)
    options = ServeOptions(
        host=host,
        port=port,
        grpc_port=None if no_grpc else grpc_port,
        device=device,
        threads=threads,
        allow_cpu_nodes=allow_cpu_nodes,
        token=token,
        tls_certificate=tls_cert,
        tls_key=tls_key,
        reload_s=reload,
        drain_s=drain,
        shutdown_s=shutdown_timeout,
        log_requests=log_requests,
        limits=Limits(
            body_bytes=max_body,
            batch_rows=max_batch,
            queue=max_queue,
            connections=max_connections,
            deadline_s=deadline,
            receive_s=receive_timeout,
            idle_s=idle_timeout,
        ),
    )
    run_server(named_models(models), options)


def named_models(arguments: tuple[str, ...]) -> dict[str, Path]:
    """Name to file.

    Raises:
        OptionError: two models under one name.
    """
    found: dict[str, Path] = {}
    for argument in arguments:
        name, separator, file = argument.partition("=")
        path = Path(file if separator else argument)
        name = name if separator else path.stem
        if name in found:
            raise OptionError(f"two models are named '{name}': {found[name]} and {path}. Write NAME=FILE.")
        found[name] = path
    return found
