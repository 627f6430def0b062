"""A server starts whole or not at all, and stops without losing a request."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running_server import RunningServer, options, write_model

from l0runtime.errors import DeviceError, ModelFileError, OptionError, UnsupportedModelError

Start = Callable[..., RunningServer]
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 0, 2]}]}).encode()
# a model that takes a while: a long chain of products
SLOW = """g (float[N,3] x) => (float[N,2] y)
<float[3,2] w={1,2,3,4,5,6}, float[1,1] one={1}, int64[2] wide={1400,1400}> {
    big = Expand (one, wide)
    a = MatMul (big, big)
    b = MatMul (a, big)
    total = ReduceMean <keepdims = 0> (b)
    known = Div (total, total)
    p = MatMul (x, w)
    y = Mul (p, known)
}"""


def listening(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, Any]]]:
    """The port that a server says it listens on, and the events before."""
    events: list[dict[str, Any]] = []
    assert process.stderr is not None
    for line in process.stderr:
        events.append(json.loads(line))
        if events[-1]["event"] == "listening":
            return int(events[-1]["rest"].rpartition(":")[2]), events
    raise AssertionError(events)


def begin(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "l0runtime", "serve", *map(str, arguments), "--device", "cpu", "--threads", "1"]
    command += ["--port", "0", "--grpc-port", "0"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.mark.skipif(
    not Path("/proc/self/limits").exists(), reason="the limits of a process are read as Linux shows them"
)
@pytest.mark.parametrize("hard", [5000, 300])
def test_as_many_files_as_connections_need_are_asked_for(tmp_path: Path, hard: int) -> None:
    model = write_model(tmp_path / "linear.onnx", "linear")
    options = "--device cpu --threads 1 --port 0 --grpc-port 0 --max-connections 1000"
    command = f"ulimit -Sn 200; ulimit -Hn {hard}; exec {sys.executable} -m l0runtime serve {model} {options}"
    process = subprocess.Popen(["bash", "-c", command], stderr=subprocess.PIPE, text=True)
    try:
        _, events = listening(process)
        limit = next(
            line for line in Path(f"/proc/{process.pid}/limits").read_text().splitlines() if "open files" in line
        )
        assert int(limit.split()[3]) == min(2 * 1000 + 256, hard)
        warned = [event for event in events if event["event"] == "few_open_files"]
        assert [(event["wanted"], event["given"]) for event in warned] == ([(2256, 300)] if hard == 300 else [])
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's here")
def test_sigterm_finishes_what_was_sent_and_loses_nothing(tmp_path: Path) -> None:
    process = begin(write_model(tmp_path / "linear.onnx", "linear"), "--drain", "1")
    try:
        port, _ = listening(process)
        counts = {"answered": 0, "lost": 0, "refused": 0}
        ended = threading.Event()

        def ask() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            while not ended.is_set():
                try:
                    connection.connect()
                except ConnectionRefusedError:
                    counts["refused"] += 1
                    return
                try:
                    while not ended.is_set():
                        connection.request("POST", "/v2/models/linear/infer", BODY)
                        found = connection.getresponse()
                        right = found.status == 200 and json.loads(found.read())["outputs"][0]["data"] == [11, 14]
                        counts["answered" if right else "lost"] += 1
                        if found.getheader("connection") == "close":
                            return
                except (http.client.HTTPException, OSError):
                    counts["lost"] += 1
                    return

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(20)
        ended.set()
        assert process.wait(20) == 0
        assert counts["answered"] > 8
        assert counts["lost"] == 0
        assert process.stderr is not None
        assert [json.loads(line)["event"] for line in process.stderr] == ["stopping", "stopped"]
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_a_request_in_work_is_answered_after_the_stop_was_asked_for(start: Start) -> None:
    server = start({"slow": SLOW})
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(server.infer("slow", BODY)))
    thread.start()
    connections = server.server._uvicorn.server_state.tasks  # type: ignore[union-attr]
    end = time.monotonic() + 10
    while not connections and time.monotonic() < end:
        time.sleep(0.001)
    server.stop()
    thread.join(30)
    assert answers[0].status == 200
    assert answers[0].json["outputs"][0]["data"] == [11, 14]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)


def test_while_draining_readiness_is_no_and_answers_end_their_connection(start: Start) -> None:
    server = start({"linear": "linear"}, drain_s=1.0)
    assert "connection" not in server.infer("linear", BODY).headers
    thread = threading.Thread(target=lambda: server.stop(drain=True))
    thread.start()
    end = time.monotonic() + 5
    while server.server.repository.is_ready and time.monotonic() < end:
        time.sleep(0.01)
    ready = server.request("GET", "/v2/health/ready")
    assert (ready.status, ready.json) == (503, {"ready": False})
    assert server.request("GET", "/v2/health/live").status == 200
    answer = server.infer("linear", BODY)
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    thread.join(30)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            "g (string[N] x) => (string[N] y) { y = Identity (x) }",
            UnsupportedModelError,
            "'x' holds strings; only tensors",
        ),
        (None, ModelFileError, "no such file. Give the path of an .onnx file."),
    ],
)
def test_an_unfit_model_stops_the_start(tmp_path: Path, text: str | None, error: type[Exception], message: str) -> None:
    good = write_model(tmp_path / "good.onnx", "linear")
    bad = tmp_path / "bad.onnx"
    if text is not None:
        write_model(bad, text)
    with pytest.raises(error, match=message):
        RunningServer({"good": good, "bad": bad}, options())


def test_a_gpu_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    import onnxruntime

    if "cuda" in str(getattr(onnxruntime, "get_device", lambda: "")()).lower() and Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU here")
    with pytest.raises(DeviceError):
        RunningServer({"linear": write_model(tmp_path / "linear.onnx", "linear")}, options(device="cuda"))


def test_a_port_that_is_taken_is_named(start: Start, tmp_path: Path) -> None:
    first = start({"linear": "linear"})
    model = tmp_path / "linear.onnx"
    with pytest.raises(OptionError, match=rf"^REST cannot listen on 127\.0\.0\.1:{first.port} \(.*\)\. Choose another"):
        RunningServer({"linear": model}, options(port=first.port))
    port = int(first.grpc.rpartition(":")[2])
    with pytest.raises(OptionError, match=rf"^gRPC cannot listen on 127\.0\.0\.1:{port} "):
        RunningServer({"linear": model}, options(grpc_port=port))


@pytest.mark.parametrize("name", ["", "a/b", "a b", "../x", ".hidden", "é"])
def test_a_model_name_that_no_address_can_hold_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match=r"expected letters, digits, '_', '-' and '\.'"):
        RunningServer({name: write_model(tmp_path / "linear.onnx", "linear")}, options())


def test_without_grpc_there_is_rest_alone(start: Start) -> None:
    server = start({"linear": "linear"}, grpc_port=None)
    assert server.server.grpc_address is None
    assert server.infer("linear", BODY).status == 200


def test_requests_are_logged_where_asked_for(start: Start) -> None:
    server = start({"linear": "linear"}, log_requests=True)
    server.infer("linear", BODY)
    server.infer("linear", b"{")
    server.stop()  # an answer is logged after it is sent
    found = [event for event in server.events() if event["event"] == "request"]
    assert [(event["status"], event["model"], event["protocol"]) for event in found] == [
        (200, "linear", "rest"),
        (400, "linear", "rest"),
    ]
    assert found[1]["reason"].startswith("the body is not valid JSON: ")
    assert found[0]["level"] == "info"
    assert found[0]["client"] == "127.0.0.1"


def test_an_error_of_the_server_s_own_is_a_500_without_its_details(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start({"linear": "linear"})
    monkeypatch.setattr(
        server.server.repository.models["linear"].revision.session, "check", lambda feed: {}["a private detail"]
    )
    answer = server.infer("linear", BODY)
    assert (answer.status, answer.json) == (500, {"error": "internal error; the server's log has the details."})
    server.stop()
    assert any("a private detail" in event.get("error", "") for event in server.events())
