"""Running servers for the tests; all of them are skipped where the extra `serve` is not installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

for _module in ("starlette", "uvicorn", "httptools", "orjson", "grpc", "prometheus_client"):
    pytest.importorskip(_module, reason="the extra `serve` is not installed")

from running_server import MODELS, RunningServer, options, write_model  # noqa: E402 - it imports them too

Start = Callable[..., RunningServer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a server of models given as ONNX text or by name; keywords are its options."""
    running: list[RunningServer] = []

    def begin(models: dict[str, str], **changes: Any) -> RunningServer:
        paths = {name: write_model(tmp_path / f"{name}.onnx", text) for name, text in models.items()}
        running.append(RunningServer(paths, options(**changes)))
        return running[-1]

    yield begin
    for server in running:
        server.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server of all the models above, for tests that change nothing."""
    folder = tmp_path_factory.mktemp("models")
    server = RunningServer({name: write_model(folder / f"{name}.onnx", name) for name in MODELS}, options())
    yield server
    server.stop()
