"""Merged requests each get their own answer, and their own error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import l0runtime
from l0runtime.errors import DeadlineError, InputError, OptionError, QueueFullError, UnsupportedModelError
from l0runtime.session import MicroBatcher, Session, SessionMetrics

SaveModel = Callable[..., Path]
W = np.array([[1, 2], [3, 4], [5, 6]], np.float32)


def row(seed: int, count: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(-9, 9, (count, 3)).astype(np.float32)


class Held:
    """A session whose first run waits, so that a test decides what has queued up meanwhile."""

    def __init__(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started, self.go = threading.Event(), threading.Event()
        self.batches: list[int] = []
        original = session.run_arrays

        def run_arrays(feed: dict[str, Any]) -> list[Any]:
            self.batches.append(len(next(iter(feed.values()))))
            self.started.set()
            assert self.go.wait(30)
            return original(feed)

        monkeypatch.setattr(session, "run_arrays", run_arrays)


@pytest.fixture
def session(save_model: SaveModel) -> Iterator[Session]:
    with l0runtime.load(save_model("linear"), device="cpu", threads=1) as loaded:
        yield loaded


def test_what_queued_up_during_a_run_shares_the_next_one(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(session, monkeypatch)
    with MicroBatcher(session, max_batch=8) as batcher:
        first = batcher.submit({"x": row(0)})
        assert held.started.wait(30)
        rest = [batcher.submit({"x": row(seed, seed)}) for seed in (1, 2, 3, 4)]
        held.go.set()
        for seed, future in enumerate([first, *rest]):
            assert np.array_equal(future.result(30)["y"], row(seed, max(seed, 1)) @ W)
    # the first alone; then 1 + 2 + 3 rows, where 4 more would exceed 8; the check of independence sees 1, 1, 1, 1 and 4
    assert held.batches == [1, 1, 1, 1, 1, 4, 6, 4]


def test_requests_of_different_shapes_do_not_mix(save_model: SaveModel) -> None:
    path = save_model("g (float[N,L] x) => (float[N,L] y) { y = Neg (x) }")
    with l0runtime.load(path, device="cpu") as session, MicroBatcher(session) as batcher:
        futures = [batcher.submit({"x": np.full((1, 1 + i % 3), i, np.float32)}) for i in range(30)]
        for i, future in enumerate(futures):
            assert future.result(30)["y"].tolist() == [[-i] * (1 + i % 3)]


def test_an_error_belongs_to_the_request_that_caused_it(save_model: SaveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_model("g (int64[N] i) => (float[N] y) <float[3] t={7,8,9}> { y = Gather (t, i) }")
    session = l0runtime.load(path, device="cpu")
    held = Held(session, monkeypatch)
    with MicroBatcher(session) as batcher:
        futures: list[Future[dict[str, Any]]] = [batcher.submit({"i": np.array([0])})]
        assert held.started.wait(30)
        futures += [batcher.submit({"i": np.array([i])}) for i in (1, 99, 2)]
        held.go.set()
        assert [futures[k].result(30)["y"].tolist() for k in (0, 1, 3)] == [[7], [8], [9]]
        with pytest.raises(InputError, match="onnxruntime refused the inputs"):
            futures[2].result(30)


def test_wrong_inputs_are_refused_before_they_queue(session: Session) -> None:
    with MicroBatcher(session) as batcher, pytest.raises(InputError):
        batcher.submit({"x": np.zeros(3, np.float32)})


def test_a_full_queue_refuses_and_a_late_request_expires(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(session, monkeypatch)
    with MicroBatcher(session, max_queue=2) as batcher:
        batcher.submit({"x": row(0)})
        assert held.started.wait(30)
        late = batcher.submit({"x": row(1)}, timeout_ms=0)
        dropped = batcher.submit({"x": row(2)})
        with pytest.raises(QueueFullError) as caught:
            batcher.submit({"x": row(3)})
        assert str(caught.value) == "2 requests wait already; try again later."
        assert dropped.cancel()
        held.go.set()
        with pytest.raises(DeadlineError, match=r"^the request waited longer than its timeout\.$"):
            late.result(30)


def test_closing_finishes_what_waits_and_takes_no_more(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(session, monkeypatch)
    batcher = MicroBatcher(session)
    futures = [batcher.submit({"x": row(seed)}) for seed in range(3)]
    assert held.started.wait(30)
    held.go.set()
    batcher.close()
    assert all(future.done() for future in futures)
    with pytest.raises(QueueFullError, match="closed"):
        batcher.submit({"x": row(0)})


def test_a_delay_lets_a_batch_fill_up(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(session, monkeypatch)
    held.go.set()
    with MicroBatcher(session, max_batch=2, max_delay_ms=30_000) as batcher:
        first, second = batcher.submit({"x": row(0)}), batcher.submit({"x": row(1)})
        assert np.array_equal(first.result(20)["y"], row(0) @ W)
        assert np.array_equal(second.result(20)["y"], row(1) @ W)
    assert held.batches[-1] == 2


def test_a_request_with_a_deadline_does_not_sit_out_a_longer_delay(session: Session) -> None:
    with MicroBatcher(session, max_delay_ms=60_000) as batcher:
        patient = batcher.submit({"x": row(0)})
        hurried = batcher.submit({"x": row(1)}, timeout_ms=2_000)
        assert np.array_equal(hurried.result(20)["y"], row(1) @ W)
        assert np.array_equal(patient.result(20)["y"], row(0) @ W)


def test_the_delay_counts_from_the_arrival_of_the_first_request(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(session, monkeypatch)
    with MicroBatcher(session, max_batch=2, max_delay_ms=60_000) as batcher:
        full = batcher.submit({"x": row(0, 2)})
        assert held.started.wait(30)
        waits = batcher.submit({"x": row(1)})
        batcher._queue[0].arrived -= 60  # as if the run before it had taken a minute
        held.go.set()
        full.result(20)
        assert np.array_equal(waits.result(20)["y"], row(1) @ W)


def test_merged_batches_are_counted_as_runs_of_the_session(
    save_model: SaveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prometheus_client = pytest.importorskip("prometheus_client")
    registry = prometheus_client.CollectorRegistry()
    session = l0runtime.load(save_model("linear"), device="cpu", metrics=SessionMetrics(registry))
    held = Held(session, monkeypatch)
    with MicroBatcher(session) as batcher:
        futures = [batcher.submit({"x": row(0)})]
        assert held.started.wait(30)
        futures += [batcher.submit({"x": row(seed)}) for seed in (1, 2, 3)]
        held.go.set()
        for future in futures:
            future.result(30)
    counted = {
        sample.name: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name in ("l0runtime_session_runs_total", "l0runtime_session_rows_sum")
    }
    # one row alone, then three together
    assert counted == {"l0runtime_session_runs_total": 2, "l0runtime_session_rows_sum": 4}


def test_a_model_that_mixes_rows_answers_with_the_reason_not_with_wrong_numbers(
    save_model: SaveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_model("g (float[N,3] x) => (float[N,3] y) { m = ReduceMean <axes=[0]> (x) y = Sub (x, m) }")
    session = l0runtime.load(path, device="cpu")
    held = Held(session, monkeypatch)
    with MicroBatcher(session) as batcher:
        futures = [batcher.submit({"x": row(0, 2)})]
        assert held.started.wait(30)
        futures += [batcher.submit({"x": row(seed, 2)}) for seed in (1, 2)]
        held.go.set()
        x = row(0, 2)
        assert np.allclose(futures[0].result(30)["y"], x - x.mean(axis=0))  # it ran alone
        for future in futures[1:]:
            with pytest.raises(UnsupportedModelError, match="output 'y' of a row depends on the other rows"):
                future.result(30)


def test_torch_requests_get_torch_answers(session: Session) -> None:
    with MicroBatcher(session) as batcher:
        result = batcher.run({"x": torch.from_numpy(row(1))})["y"]
    assert torch.equal(result, torch.from_numpy(row(1) @ W))


def test_limits_without_a_meaning_are_refused(session: Session) -> None:
    with pytest.raises(OptionError):
        MicroBatcher(session, max_batch=0)
