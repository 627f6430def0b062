"""The FastAPI example answers many clients at once, each with its own rows, and names their mistakes."""

from __future__ import annotations

import http.client
import importlib.util
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for _module in ("fastapi", "uvicorn"):
    pytest.importorskip(_module, reason="FastAPI or uvicorn is not installed")

import uvicorn  # noqa: E402 - it may be absent
from running_server import W, write_model  # noqa: E402 - it needs the extra `serve`

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "fastapi_app.py"


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setenv("L0RUNTIME_MODEL", str(write_model(tmp_path / "linear.onnx", "linear")))
    monkeypatch.setenv("L0RUNTIME_DEVICE", "cpu")
    spec = importlib.util.spec_from_file_location("fastapi_app", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "fastapi_app", module)
    spec.loader.exec_module(module)
    server = uvicorn.Server(uvicorn.Config(module.app, port=0, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    end = time.monotonic() + 30
    while not server.started and time.monotonic() < end:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(30)


def predict(port: int, rows: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/predict", json.dumps({"rows": rows}), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


def test_clients_get_their_own_answers(port: int) -> None:
    answers: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda i=i: answers.update({i: predict(port, [[i, 1, 2]] * (1 + i % 2))}))  # type: ignore[misc]
        for i in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, (status, content) in answers.items():
        assert status == 200
        assert content == {"y": (np.array([[i, 1, 2]] * (1 + i % 2), np.float32) @ W).tolist()}
    assert len(answers) == 12


def test_a_mistake_is_a_400_with_its_reason(port: int) -> None:
    assert predict(port, [[1, 2]]) == (400, {"error": "input 'x': found shape [1, 2], expected [N, 3]."})
    status, content = predict(port, [[1, 2, 3], [4]])
    assert status == 400
    assert content["error"].startswith("the rows differ in length (")
    assert predict(port, "x")[0] == 422
