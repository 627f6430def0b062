"""Requests that wait together run together; each gets its own answer, its own error, and its answer in time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running_server import W, options, write_model

from l0runtime.errors import DeadlineError, InputError, QueueFullError
from l0runtime.serving.batching import LoopBatcher, QuickRuns
from l0runtime.serving.failures import RequestError
from l0runtime.serving.revision import Revision, load_revision


class Held:
    """A revision whose runs wait for a sign, so that a test decides what has queued up meanwhile."""

    def __init__(self, revision: Revision, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started, self.go = threading.Event(), threading.Event()
        self.batches: list[int] = []
        original = revision.session.run_arrays

        def run_arrays(feed: dict[str, Any]) -> list[Any]:
            self.batches.append(len(next(iter(feed.values()))))
            self.started.set()
            assert self.go.wait(30)
            return original(feed)

        monkeypatch.setattr(revision.session, "run_arrays", run_arrays)

    async def until_started(self) -> None:
        while not self.started.is_set():
            await asyncio.sleep(0.001)


def row(value: float, rows: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.full((rows, 3), value, np.float32)}


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))  # type: ignore[arg-type]


def make(revision: Revision, **changes: Any) -> LoopBatcher:
    how: dict[str, Any] = {
        "batch_rows": 8,
        "queue_limit": 100,
        "deadline_s": 30.0,
        "on_batch": lambda rows, requests: None,
    }
    return LoopBatcher(revision, 1, **(how | changes))


@pytest.fixture
def revision(tmp_path: Path) -> Iterator[Revision]:
    loaded = load_revision(write_model(tmp_path / "linear.onnx", "linear"), options())
    yield loaded
    loaded.session.close()


def test_what_queued_up_during_a_run_shares_the_next_one(revision: Revision, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        held = Held(revision, monkeypatch)
        seen: list[tuple[int, int]] = []
        batcher = make(revision, on_batch=lambda rows, requests: seen.append((rows, requests)))
        first = batcher.submit(row(0))
        await held.until_started()
        rest = [batcher.submit(row(value, value)) for value in (1, 2, 3, 4)]
        held.go.set()
        for value, future in enumerate([first, *rest]):
            (results, number) = await future
            assert number == 1
            assert np.array_equal(results[0], row(value, max(value, 1))["x"] @ W)
        assert held.batches == [1, 6, 4]  # 1 + 2 + 3 rows; 4 more would exceed 8
        assert seen == [(1, 1), (6, 3), (4, 1)]
        batcher.close()

    run(test)


def test_what_arrives_in_one_turn_of_the_loop_runs_together(
    revision: Revision, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        held = Held(revision, monkeypatch)
        held.go.set()
        batcher = make(revision)
        await asyncio.gather(*[batcher.submit(row(value)) for value in range(5)])
        assert held.batches == [5]
        batcher.close()

    run(test)


def test_a_full_queue_refuses_at_once(revision: Revision, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        held = Held(revision, monkeypatch)
        batcher = make(revision, queue_limit=2)
        futures = [batcher.submit(row(0))]
        await held.until_started()
        futures += [batcher.submit(row(value)) for value in (1, 2)]
        assert batcher.waiting == 2
        with pytest.raises(QueueFullError, match=r"^2 requests wait already; try again later\.$"):
            batcher.submit(row(3))
        held.go.set()
        assert len(await asyncio.gather(*futures)) == 3
        batcher.close()

    run(test)


def test_a_deadline_passes_for_waiting_and_for_running_requests(
    revision: Revision, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        held = Held(revision, monkeypatch)
        batcher = make(revision)
        running = batcher.submit(row(0), timeout_s=0.05)
        await held.until_started()
        waiting = batcher.submit(row(1), timeout_s=0.05)
        patient = batcher.submit(row(2))
        time.sleep(0.06)
        batcher.expire()
        for future in (running, waiting):
            with pytest.raises(DeadlineError, match=r"^the request was not answered within its deadline\.$"):
                await future
        held.go.set()
        assert np.array_equal((await patient)[0][0], row(2)["x"] @ W)
        assert held.batches == [1, 1]  # the one that waited in vain was not run
        batcher.close()

    run(test)


def test_an_error_belongs_to_the_request_that_caused_it(tmp_path: Path) -> None:
    async def test() -> None:
        table = load_revision(write_model(tmp_path / "table.onnx", "table"), options())
        batcher = make(table)
        futures = [batcher.submit({"i": np.array([index])}) for index in (0, 99, 2)]
        found = await asyncio.gather(*futures, return_exceptions=True)
        assert found[0][0][0].tolist() == [7]  # type: ignore[index]
        assert isinstance(found[1], InputError)
        assert str(found[1]).startswith("the model cannot compute these inputs: ")
        assert found[2][0][0].tolist() == [9]  # type: ignore[index]
        batcher.close()

    run(test)


def test_requests_of_different_shapes_do_not_mix(tmp_path: Path) -> None:
    async def test() -> None:
        text = "g (float[N,L] x) => (float[N,L] y) { y = Neg (x) }"
        free = load_revision(write_model(tmp_path / "free.onnx", text), options())
        assert free.not_merged is None
        batcher = make(free)
        futures = [batcher.submit({"x": np.full((1, 1 + i % 3), i, np.float32)}) for i in range(20)]
        for i, (results, _) in enumerate(await asyncio.gather(*futures)):
            assert results[0].tolist() == [[-i] * (1 + i % 3)]
        batcher.close()

    run(test)


def test_a_request_whose_inputs_disagree_about_their_rows_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        two = load_revision(write_model(tmp_path / "two.onnx", "two"), options())
        batcher = make(two)
        feed = {"a": np.zeros((1, 2), np.float32), "b": np.zeros((2, 2), np.float32)}
        with pytest.raises(InputError, match=r"^inputs have different numbers of rows: \[1, 2\]\.$"):
            batcher.submit(feed)
        batcher.close()

    run(test)


def test_another_revision_computes_from_the_next_batch_on(revision: Revision, tmp_path: Path) -> None:
    async def test() -> None:
        text = "g (float[N,3] x) => (float[N,2] y) <float[3,2] w={2,4,6,8,10,12}> { y = MatMul (x, w) }"
        other = load_revision(write_model(tmp_path / "other.onnx", text), options())
        batcher = make(revision)
        before, number = await batcher.submit(row(1))
        assert (before[0].tolist(), number) == ([[9, 12]], 1)
        batcher.exchange(other, 2)
        after, number = await batcher.submit(row(1))
        assert (after[0].tolist(), number) == ([[18, 24]], 2)
        batcher.close()

    run(test)


def test_requests_that_wait_while_a_model_is_exchanged_for_one_that_merges_keep_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        mixing = load_revision(write_model(tmp_path / "mixing.onnx", "mixing"), options())
        apart = load_revision(
            write_model(tmp_path / "apart.onnx", "g (float[N,2] x) => (float[N,2] y) { y = Neg (x) }"), options()
        )
        assert (mixing.not_merged is None, apart.not_merged is None) == (False, True)
        held = Held(mixing, monkeypatch)
        batcher = make(mixing)
        first = batcher.submit({"x": np.ones((2, 2), np.float32)})
        await held.until_started()
        arrays = [np.full((rows, 2), rows, np.float32) for rows in (3, 1, 2)]
        waiting = [batcher.submit({"x": array}) for array in arrays]
        batcher.exchange(apart, 2)
        held.go.set()
        assert (await first)[0][0].tolist() == [[5, 5], [5, 5]]
        for array, future in zip(arrays, waiting, strict=True):
            (results, number) = await future
            assert number == 2
            assert np.array_equal(results[0], -array)
        batcher.close()

    run(test)


def test_closing_refuses_what_still_waits_and_finishes_what_runs(
    revision: Revision, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        held = Held(revision, monkeypatch)
        batcher = make(revision)
        running = batcher.submit(row(1))
        await held.until_started()
        waiting = batcher.submit(row(2))
        batcher.close()
        held.go.set()
        assert (await running)[0][0].tolist() == [[9, 12]]
        with pytest.raises(RequestError, match=r"^the server is shutting down\.$"):
            await waiting

    run(test)


def test_what_is_quick_is_learnt_and_unlearnt() -> None:
    quick = QuickRuns()
    assert not quick.expects(0)
    quick.note(100, QuickRuns.LIMIT_S / 2)
    assert quick.expects(100)
    assert not quick.expects(101)
    quick.note(200, QuickRuns.LIMIT_S * 2)  # a larger one tells nothing of those
    assert quick.expects(100)
    quick.note(50, QuickRuns.LIMIT_S * 2)
    assert not quick.expects(50)
    quick.note(50, QuickRuns.LIMIT_S / 2)
    assert quick.expects(50)


def test_quick_batches_run_on_the_loop_and_others_on_the_thread(
    revision: Revision, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        here = threading.get_ident()
        on_loop: list[bool] = []
        pause_s = 0.0
        original = revision.session.run_arrays

        def run_arrays(feed: dict[str, Any]) -> list[Any]:
            on_loop.append(threading.get_ident() == here)
            time.sleep(pause_s)
            return original(feed)

        monkeypatch.setattr(revision.session, "run_arrays", run_arrays)
        monkeypatch.setattr(QuickRuns, "LIMIT_S", 0.05)
        batcher = make(revision)
        for value in (1, 2, 3):
            (results, _) = await batcher.submit(row(value))
            assert np.array_equal(results[0], row(value)["x"] @ W)
        await batcher.submit(row(4, rows=2))  # larger than any that is known to be quick
        pause_s = 0.1
        await batcher.submit(row(5))  # turns out slow, and is the last
        await batcher.submit(row(6))
        assert on_loop == [False, True, True, False, True, False]
        batcher.exchange(revision, 2)
        pause_s = 0.0
        await batcher.submit(row(7))
        assert on_loop[-1] is False  # nothing is known of another revision
        batcher.close()

    run(test)


def test_an_error_of_a_quick_batch_belongs_to_its_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(QuickRuns, "LIMIT_S", 1.0)
        table = load_revision(write_model(tmp_path / "table.onnx", "table"), options())
        batcher = make(table)
        await batcher.submit({"i": np.array([0, 1, 2, 0])})  # on the thread; three of one are less, and quick from now
        futures = [batcher.submit({"i": np.array([index])}) for index in (0, 99, 2)]
        found = await asyncio.gather(*futures, return_exceptions=True)
        assert [found[0][0][0].tolist(), found[2][0][0].tolist()] == [[7], [9]]  # type: ignore[index]
        assert isinstance(found[1], InputError)
        batcher.close()

    run(test)
