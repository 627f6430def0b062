"""A replaced file takes over once it is verified, and only then; nobody loses an answer meanwhile."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running_server import RunningServer, write_model

Start = Callable[..., RunningServer]
DOUBLE = "g (float[N,3] x) => (float[N,2] y) <float[3,2] w={2,4,6,8,10,12}> { y = MatMul (x, w) }"
OTHER_INPUT = "g (float[N,3] z) => (float[N,2] y) <float[3,2] w={2,4,6,8,10,12}> { y = MatMul (z, w) }"
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 0, 2]}]}).encode()
ANSWERS = {"1": [11, 14], "2": [22, 28]}


def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


def happened(server: RunningServer, event: str) -> dict[str, Any]:
    return next((found for found in server.events() if found["event"] == event), {})


def answer(server: RunningServer) -> tuple[str, list[float]]:
    found = server.infer("linear", BODY).json
    return found["model_version"], found["outputs"][0]["data"]


def replace(path: Path, content: str | bytes) -> None:
    """Write beside the file, then put it in its place at once."""
    other = path.with_suffix(".new.onnx")
    if isinstance(content, bytes):
        other.write_bytes(content)
    else:
        write_model(other, content)
    other.replace(path)


def test_a_replaced_file_takes_over_and_counts_as_the_next_version(start: Start, tmp_path: Path) -> None:
    server = start({"linear": "linear"}, reload_s=0.05)
    assert answer(server) == ("1", [11, 14])
    replace(tmp_path / "linear.onnx", DOUBLE)
    until(lambda: happened(server, "model_reloaded"))
    assert answer(server) == ("2", [22, 28])
    assert server.request("GET", "/v2/models/linear").json["versions"] == ["2"]
    assert server.request("GET", "/v2/models/linear/versions/1").status == 404
    assert b'l0runtime_reloads_total{model="linear",outcome="taken"} 1.0' in server.request("GET", "/metrics").body


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not a model", "cannot be read as an ONNX model|onnxruntime cannot load it"),
        (b"", "the file is empty"),
        (OTHER_INPUT, "its inputs are z: float32 [N, 3], so far x: float32 [N, 3]. Serve it under another name."),
        (
            "g (float[N,3] x) => (float[N,4] y) <float[3,2] w={2,4,6,8,10,12}> { y = MatMul (x, w) }",
            "its outputs are y: float32 [N, ?], so far y: float32 [N, 2]. Serve it under another name.",
        ),
    ],
    ids=["nonsense", "empty", "other tensors", "contradiction"],
)
def test_an_unfit_file_is_refused_and_the_old_model_answers_on(
    start: Start, tmp_path: Path, content: str | bytes, reason: str
) -> None:
    server = start({"linear": "linear"}, reload_s=0.05)
    replace(tmp_path / "linear.onnx", content)
    until(lambda: happened(server, "reload_refused"))
    assert any(part in happened(server, "reload_refused")["reason"] for part in reason.split("|"))
    assert answer(server) == ("1", [11, 14])
    time.sleep(0.2)
    assert sum(event["event"] == "reload_refused" for event in server.events()) == 1  # said once
    replace(tmp_path / "linear.onnx", DOUBLE)
    until(lambda: happened(server, "model_reloaded"))
    assert answer(server) == ("2", [22, 28])


def test_a_file_that_is_still_being_written_is_left_alone(start: Start, tmp_path: Path) -> None:
    server = start({"linear": "linear"}, reload_s=0.1)
    content = write_model(tmp_path / "double.onnx", DOUBLE).read_bytes()
    with (tmp_path / "linear.onnx").open("wb") as file:
        for part in range(8):
            file.write(content[part * len(content) // 8 : (part + 1) * len(content) // 8])
            file.flush()
            time.sleep(0.04)  # less than between two looks
            assert answer(server) == ("1", [11, 14])
    until(lambda: happened(server, "model_reloaded"))
    assert not happened(server, "reload_refused")
    assert answer(server) == ("2", [22, 28])


def test_a_file_that_nobody_can_make_sense_of_does_not_end_the_watch(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start({"linear": "linear"}, reload_s=0.05)

    def broken(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        for module in ("reloading", "revision"):
            patch.setattr(f"l0runtime.serving.{module}.external_files", broken)
        replace(tmp_path / "linear.onnx", DOUBLE)
        until(lambda: happened(server, "reload_refused"))
        assert happened(server, "reload_refused")["reason"] == "PermissionError: [Errno 13] Permission denied"
        assert answer(server) == ("1", [11, 14])
    replace(tmp_path / "linear.onnx", DOUBLE)
    until(lambda: happened(server, "model_reloaded"))
    assert answer(server) == ("2", [22, 28])


def test_a_removed_file_changes_nothing(start: Start, tmp_path: Path) -> None:
    server = start({"linear": "linear"}, reload_s=0.05)
    (tmp_path / "linear.onnx").unlink()
    time.sleep(0.25)
    assert answer(server) == ("1", [11, 14])
    assert not happened(server, "reload_refused")


def test_every_answer_during_reloads_is_that_of_the_version_it_names(start: Start, tmp_path: Path) -> None:
    server = start({"linear": "linear"}, reload_s=0.05)
    shutil.copy(tmp_path / "linear.onnx", tmp_path / "one.onnx")
    write_model(tmp_path / "two.onnx", DOUBLE)
    stop = threading.Event()
    wrong: list[Any] = []
    versions: set[str] = set()
    counted = [0] * 4

    def ask(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        while not stop.is_set():
            connection.request("POST", "/v2/models/linear/infer", BODY)
            found = connection.getresponse()
            content = json.loads(found.read())
            version = content.get("model_version", "")
            counted[number] += 1
            versions.add(version)
            # odd versions are the file of the start, even ones its double
            expected = ANSWERS["1"] if version and int(version) % 2 else ANSWERS["2"]
            if found.status != 200 or content["outputs"][0]["data"] != expected:
                wrong.append(content)
        connection.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(4):
        replace(tmp_path / "linear.onnx", (tmp_path / ("one.onnx" if turn % 2 else "two.onnx")).read_bytes())
        until(lambda turn=turn: server.server.repository.models["linear"].number == turn + 2)  # type: ignore[misc]
        time.sleep(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert versions == {"1", "2", "3", "4", "5"}
    assert min(counted) > 0
