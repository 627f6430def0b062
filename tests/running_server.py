"""A server in a thread of the test's process, and small models to serve; imports what the extra `serve` installs."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser

from l0runtime.serving.logs import EventLog
from l0runtime.serving.options import ServeOptions
from l0runtime.serving.server import Server

HEADER = '<ir_version: 8, opset_import: ["": 17]>'
MODELS = {
    # y = x W with W = [[1, 2], [3, 4], [5, 6]]
    "linear": "g (float[N,3] x) => (float[N,2] y) <float[3,2] w={1,2,3,4,5,6}> { y = MatMul (x, w) }",
    "two": """g (float[N,2] a, float[N,2] b) => (float[N,2] total, float[N,2] difference) {
        total = Add (a, b)
        difference = Sub (a, b)
    }""",
    # 0 / 0 and 1 / 0 where x is 0
    "divide": "g (float[N,2] x) => (float[N,2] y) <float[2] one={0,1}> { y = Div (one, x) }",
    # a table of three: other indices are the client's mistake
    "table": "g (int64[N] i) => (float[N] y) <float[3] t={7,8,9}> { y = Gather (t, i) }",
    # rows that mix, so that nothing may be merged
    "mixing": """g (float[N,2] x) => (float[N,2] y) {
        total = ReduceSum <keepdims = 1> (x)
        y = Add (x, total)
    }""",
}
W = np.array([[1, 2], [3, 4], [5, 6]], np.float32)


def write_model(path: Path, text: str) -> Path:
    """Write a model given as ONNX text or by one of the names above."""
    onnx.save(onnx.parser.parse_model(f"{HEADER} {MODELS.get(text, text)}"), path)
    return path


@dataclass
class Answer:
    """What a server said."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class RunningServer:
    """A server with its event loop on a thread."""

    def __init__(self, models: dict[str, Path], options: ServeOptions) -> None:
        self.log = io.StringIO()
        self.server = Server(models, options, EventLog(self.log))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.stopped = False
        try:
            self.call(self.server.start())
        except BaseException:
            self._end_loop()
            raise

    def call(self, coroutine: Any) -> Any:
        """Run a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    @property
    def port(self) -> int:
        return int(self.server.rest_address.rpartition(":")[2])

    @property
    def rest(self) -> str:
        """Host and port, as tritonclient wants them."""
        return f"127.0.0.1:{self.port}"

    @property
    def grpc(self) -> str:
        assert self.server.grpc_address is not None
        return self.server.grpc_address

    def request(
        self, method: str, path: str, body: bytes | dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """One request over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            content = json.dumps(body).encode() if isinstance(body, dict) else body
            connection.request(method, path, content, headers or {})
            found = connection.getresponse()
            return Answer(found.status, {k.lower(): v for k, v in found.getheaders()}, found.read())
        finally:
            connection.close()

    def infer(self, model: str, body: bytes | dict[str, Any], headers: dict[str, str] | None = None) -> Answer:
        return self.request("POST", f"/v2/models/{model}/infer", body, headers)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def stop(self, *, drain: bool = False) -> None:
        if not self.stopped:
            self.stopped = True
            self.call(self.server.stop(drain=drain))
            self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()


def options(**changes: Any) -> ServeOptions:
    """Options for a test: any free ports, the CPU, no reloading unless asked for."""
    return ServeOptions(**({"port": 0, "grpc_port": 0, "device": "cpu", "threads": 1, "reload_s": 0.0} | changes))
