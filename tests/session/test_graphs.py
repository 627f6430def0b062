"""Replaying one graph for each shape: tried without a GPU, where a graph is an ordinary run of its bound buffers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from l0runtime.errors import DeviceError, InputError, UnsupportedModelError
from l0runtime.session import MicroBatcher, Session, graphs
from l0runtime.session.bound import BoundRun
from l0runtime.session.devices import Device
from l0runtime.session.graphs import GraphRuns

SaveModel = Callable[..., Path]
X = np.array([[1, 0, 0], [1, 1, -1]], np.float32)
# x W with W = [[1, 2], [3, 4], [5, 6]]
Y = [[1, 2], [-1, 0]]


class Recorded:
    """An onnxruntime session that notes which graph each run names."""

    def __init__(self, path: Path) -> None:
        self._raw = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.graphs: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
        self.graphs.append(int(options.get_run_config_entry("gpu_graph_id")))
        self._raw.run_with_iobinding(binding, options)

    def run(self, names: list[str], feed: dict[str, Any], options: Any = None) -> Any:
        self.graphs.append(int(options.get_run_config_entry("gpu_graph_id")))
        return self._raw.run(names, feed, options)


@pytest.fixture
def raw(save_model: SaveModel) -> Recorded:
    return Recorded(save_model("linear"))


def test_every_shape_has_a_graph_of_its_own_and_is_recorded_once(raw: Recorded) -> None:
    runs = GraphRuns(raw, "cpu", 0)
    assert runs.run({"x": X})[0].tolist() == Y
    # allocation without a graph, recording on zeros until it replays, the proof on the inputs, without a graph, the run
    assert raw.graphs == [-1, 1, 1, 1, 1, 1, -1, 1]
    raw.graphs.clear()
    assert runs.run({"x": X[::-1].copy()})[0].tolist() == Y[::-1]
    assert raw.graphs == [1]
    raw.graphs.clear()
    assert runs.run({"x": X[:1]})[0].tolist() == Y[:1]
    assert set(raw.graphs) == {-1, 2}
    assert runs.shapes == (((2, 3),), ((1, 3),))


def test_a_graph_that_replays_stale_inputs_is_refused(raw: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = GraphRuns(raw, "cpu", 0)
    real, count = BoundRun.run, iter(range(100))

    def stale(self: BoundRun) -> None:
        if next(count) < 4:  # recorded on zeros, then deaf
            real(self)

    monkeypatch.setattr(BoundRun, "run", stale)
    with pytest.raises(DeviceError) as raised:
        runs.run({"x": X})
    assert str(raised.value) == (
        "output 'y': a replayed CUDA graph gives other values than a run without it, as if the inputs had not changed. "
        "Load the model without cuda_graphs."
    )
    assert runs.shapes == ()


def test_outputs_are_new_arrays(raw: Recorded) -> None:
    runs = GraphRuns(raw, "cpu", 0)
    (first,) = runs.run({"x": X})
    runs.run({"x": X * 2})
    assert first.tolist() == Y


def test_a_caller_s_own_binding_has_a_graph_that_nobody_shares(raw: Recorded) -> None:
    runs = GraphRuns(raw, "cpu", 0)
    runs.run({"x": X})
    one, two = runs.bind({"x": X}), runs.bind({"x": X})
    raw.graphs.clear()
    one.run()
    two.run()
    assert raw.graphs == [2, 3]


def test_more_shapes_than_fit_into_memory_are_refused(raw: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_MOST_GRAPHS", 1)
    runs = GraphRuns(raw, "cpu", 0)
    runs.run({"x": X})
    with pytest.raises(UnsupportedModelError, match=r"^1 input shapes have a CUDA graph already"):
        runs.run({"x": X[:1]})


def test_threads_take_turns(raw: Recorded) -> None:
    runs = GraphRuns(raw, "cpu", 0)
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            if runs.run({"x": X * number})[0].tolist() != (np.array(Y) * number).tolist():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_session_pads_to_its_buckets_and_records_only_those(raw: Recorded) -> None:
    session = Session(raw, Device("cpu"), "model", (), buckets=(2, 4), cuda_graphs=True)
    many = np.concatenate([X, X, X[:1]])
    assert session.run({"x": many})["y"].tolist() == Y + Y + Y[:1]
    assert session(X[:1]).tolist() == Y[:1]
    assert session.run({"x": X}, ["y"])["y"].tolist() == Y
    # five rows are cut into 4 and 1; the check that rows do not mix runs without a graph
    assert session._graphs is not None
    assert session._graphs.shapes == (((4, 3),), ((2, 3),))


def test_merged_requests_are_padded_to_the_buckets_too(raw: Recorded) -> None:
    session = Session(raw, Device("cpu"), "model", (), buckets=(4,), cuda_graphs=True)
    with MicroBatcher(session, max_batch=3, max_delay_ms=20) as batcher:
        results = [batcher.submit({"x": X[:1] * number}) for number in range(6)]
        assert [result.result()["y"].tolist() for result in results] == [[[1 * n, 2 * n]] for n in range(6)]
    assert session._graphs is not None
    assert session._graphs.shapes == (((4, 3),),)


def test_warming_up_without_inputs_records_every_bucket(raw: Recorded) -> None:
    session = Session(raw, Device("cpu"), "model", (), buckets=(1, 2), cuda_graphs=True)
    session.warm_up()
    assert session._graphs is not None
    assert session._graphs.shapes == (((1, 3),), ((2, 3),))


def test_warming_up_without_inputs_needs_known_shapes(save_model: SaveModel) -> None:
    path = save_model("g (float[N,L] x) => (float[N,L] y) { y = Relu (x) }")
    session = Session(onnxruntime.InferenceSession(str(path)), Device("cpu"), "model", ())
    with pytest.raises(InputError) as raised:
        session.warm_up()
    assert str(raised.value) == "input 'x: float32 [N, L]': has dynamic dimensions; give inputs to warm up on."
