"""Requests that share a run each get their own answer, although each of their samples takes another path."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conditional_graphs import conditional_file, nested, normal, residual, run
from running_server import RunningServer, options

from converters.compaction import compact

CLIENTS, ASKED = 12, 6
ALL = np.array([1, 2, 3])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    paths = {}
    for name, make in (("residual", residual), ("nested", nested)):
        paths[name] = tmp_path / f"{name}.onnx"
        conditional_file(paths[name], make())  # type: ignore[operator]
    running = RunningServer(paths, options())
    yield running
    running.stop()


def request(x: np.ndarray, k: np.ndarray) -> dict[str, Any]:
    return {
        "inputs": [
            {"name": name, "shape": list(array.shape), "datatype": "FP32", "data": array.ravel().tolist()}
            for name, array in (("x", x), ("k", k))
        ]
    }


def total(page: str, metric: str, model: str) -> float:
    return next(float(line.split()[-1]) for line in page.splitlines() if line.startswith(f'{metric}{{model="{model}"'))


@pytest.mark.parametrize("model", ["residual", "nested"])
def test_each_request_is_answered_as_if_it_were_alone(server: RunningServer, tmp_path: Path, model: str) -> None:
    """Of one to three samples, some run the block, some skip it, some run it by half; the masked model is the judge."""
    generator = np.random.default_rng(3)
    feeds = []
    for number in range(CLIENTS * ASKED):
        rows = 1 + number % 3
        k = generator.choice([-1.0, 0.0, 0.5, 1.0], (rows, 1, 1, 1)).astype(np.float32)
        feeds.append({"x": normal(rows, 4, 5, 5), "k": k})
    masked = onnx.load(str(tmp_path / f"masked_{model}.onnx"))
    expected = [run(masked, **feed)[0] for feed in feeds]
    wrong: list[str] = []

    def ask(client: int) -> None:
        for number in range(client, len(feeds), CLIENTS):
            answer = server.infer(model, request(**feeds[number]))
            if answer.status != 200:
                wrong.append(f"request {number}: {answer.status} {answer.body!r}")
                continue
            output = answer.json["outputs"][0]
            found = np.array(output["data"], np.float32).reshape(output["shape"])
            # a merged batch may round otherwise, in the last bits of sums of 36 products
            if found.shape != expected[number].shape or not np.allclose(found, expected[number], rtol=1e-4, atol=1e-5):
                wrong.append(f"request {number} differs")

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    page = server.request("GET", "/metrics").body.decode()
    requests = total(page, "l0runtime_batch_requests_total", model)
    assert requests == len(feeds)
    assert total(page, "l0runtime_batches_total", model) < requests  # some did share a run


def test_a_block_that_mixes_samples_is_not_merged(tmp_path: Path) -> None:
    """The mean over the batch in it makes an answer depend on its company, in the masked model too."""
    masked = residual(
        block="h = Conv<pads=[1,1,1,1]>(x, w1, b1)  a = ReduceMean<keepdims=1>(h, first)  f = Sub(h, a)",
        first=np.array([0]),
    )
    conditional_file(tmp_path / "mixing.onnx", ir.to_proto(compact(ir.from_proto(masked)).model))
    running = RunningServer({"mixing": tmp_path / "mixing.onnx"}, options())
    try:
        x, k = normal(2, 4, 5, 5), np.ones((2, 1, 1, 1), np.float32)
        expected = run(masked, x=x, k=k)[0]
        answers = [running.infer("mixing", request(x, k)) for _ in range(3)]
        for answer in answers:
            np.testing.assert_allclose(answer.json["outputs"][0]["data"], expected.ravel(), rtol=1e-4, atol=1e-5)
        # the gate is shut for the samples that a trial would make, so that no trial could tell
        assert running.server.repository.models["mixing"].revision.not_merged == (
            "batches cannot be cut, padded or merged: block 'f', which runs for some inputs only, may mix the rows of "
            "a batch. Load the model without max_batch and buckets, and do not batch it."
        )
    finally:
        running.stop()
