"""How do concurrent requests share a run without leaving the event loop's order?

Work-conserving: while one batch runs on a thread, the next gathers; a lone request runs at once. The same idea as
`l0runtime.session.MicroBatcher`, but here the queue belongs to the event loop: no lock, one hand-over between threads
for a whole batch instead of one for each request, and the model can be exchanged between two batches.

Batches that are known to run in less time than such a hand-over takes run on the loop itself: see `QuickRuns`.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from l0runtime.errors import DeadlineError, InputError, L0RuntimeError, QueueFullError
from l0runtime.serving.failures import RequestError
from l0runtime.serving.revision import Revision
from l0runtime.session.arrays import Array
from l0runtime.session.batches import Feed, join_rows

Answer = tuple[list[Array], int]  # all outputs of the model, and the number of the revision that computed them


@dataclass(slots=True, eq=False)
class _Waiting:
    feed: Feed
    rows: int
    key: tuple[object, ...]
    deadline: float
    future: asyncio.Future[Answer]


class QuickRuns:
    """Which batches are so small for their model that the event loop had better run them itself?

    Learnt from the batches before: those with no more bytes of input than one that took less than `LIMIT_S`. A batch
    that was expected to be quick and was not ends that, until a batch on the thread has been quick again.
    """

    LIMIT_S = 0.0003  # handing a batch to a thread and back costs 0.1 to 0.2 ms, during which the loop is free

    def __init__(self) -> None:
        self._quick_bytes = -1

    def expects(self, size_bytes: int) -> bool:
        """Whether a batch is expected to be quick."""
        return size_bytes <= self._quick_bytes

    def note(self, size_bytes: int, seconds: float) -> None:
        """Learn from a batch that ran."""
        if seconds <= self.LIMIT_S:
            self._quick_bytes = max(self._quick_bytes, size_bytes)
        elif size_bytes <= self._quick_bytes:
            self._quick_bytes = -1


class LoopBatcher:
    """Merges the requests to one model. All methods belong to the event loop's thread.

    Args:
        revision: the model that runs first.
        number: of that revision, given back with every answer it computes.
        batch_rows, queue, deadline_s: see `Limits`.
        on_batch: told the rows and the requests of every batch.
    """

    def __init__(
        self,
        revision: Revision,
        number: int,
        *,
        batch_rows: int,
        queue_limit: int,
        deadline_s: float,
        on_batch: Callable[[int, int], None],
    ) -> None:
        self._revision, self._number = revision, number
        self._batch_rows, self._queue_limit, self._deadline_s = batch_rows, queue_limit, deadline_s
        self._on_batch = on_batch
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Waiting] = deque()
        self._running: list[_Waiting] = []
        self._flush_is_due = False
        self._quick = QuickRuns()
        self._jobs: queue.SimpleQueue[tuple[Revision, int, list[_Waiting]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="l0runtime-batch", daemon=True)
        self._thread.start()

    def exchange(self, revision: Revision, number: int) -> None:
        """Let another revision, of the same signature, compute from the next batch on."""
        self._revision, self._number = revision, number
        self._quick = QuickRuns()  # what is known of the other model is no longer true
        for request in self._waiting:  # nor is whether it merges requests, and so what one counts for
            try:
                request.rows, request.key = self._rows_and_key(request.feed)
            except InputError as error:
                if not request.future.done():
                    request.future.set_exception(error)

    @property
    def waiting(self) -> int:
        """Requests in the queue, without those that run."""
        return len(self._waiting)

    def submit(self, feed: Feed, timeout_s: float | None = None) -> asyncio.Future[Answer]:
        """Queue a request.

        Args:
            feed: as `Session.check` gives it.
            timeout_s: the client's own limit; the server's holds as well.
        Raises:
            InputError: the inputs have different numbers of rows.
            QueueFullError: too many requests wait.
        """
        if len(self._waiting) >= self._queue_limit:
            raise QueueFullError(f"{len(self._waiting)} requests wait already; try again later.")
        rows, key = self._rows_and_key(feed)
        limit = self._deadline_s if timeout_s is None else min(timeout_s, self._deadline_s)
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting.append(_Waiting(feed, rows, key, time.monotonic() + limit, future))
        self._flush_soon()
        return future

    def _rows_and_key(self, feed: Feed) -> tuple[int, tuple[object, ...]]:
        """How many rows a request counts for in a batch, and what must be equal in all requests of one."""
        if self._revision.not_merged is not None:
            return 1, ()
        sizes = {len(array) for array in feed.values()}
        if len(sizes) != 1:
            raise InputError(f"inputs have different numbers of rows: {sorted(sizes)}.")
        return sizes.pop(), tuple([array.shape[1:] for array in feed.values()])

    def expire(self) -> None:
        """Answer the requests whose time is up; to be called a few times a second."""
        now = time.monotonic()
        for request in (*self._waiting, *self._running):
            if now > request.deadline and not request.future.done():
                request.future.set_exception(DeadlineError("the request was not answered within its deadline."))
        if any(request.future.done() for request in self._waiting):
            self._waiting = deque(request for request in self._waiting if not request.future.done())

    def close(self) -> None:
        """Stop the thread once its batch is done; requests that still wait are refused."""
        for request in self._waiting:
            if not request.future.done():
                request.future.set_exception(RequestError(503, "the server is shutting down."))
        self._waiting.clear()
        self._jobs.put(None)

    def _flush_soon(self) -> None:
        # After the other callbacks of this turn of the loop: what arrived together runs together.
        if not self._running and not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_is_due = False
        group = self._take()
        if not group:
            return
        self._running = group
        if self._quick.expects(_size_bytes(group)):
            started = time.perf_counter()
            results = _run(self._revision, group)
            self._finish(self._revision, self._number, group, results, time.perf_counter() - started)
        else:
            self._jobs.put((self._revision, self._number, group))

    def _take(self) -> list[_Waiting]:
        """The next requests that fit into one batch; those that nobody waits for any more are dropped."""
        group: list[_Waiting] = []
        rows = 0
        while self._waiting:
            request = self._waiting[0]
            if not request.future.done():
                if group and (
                    self._revision.not_merged is not None
                    or request.key != group[0].key
                    or rows + request.rows > self._batch_rows
                ):
                    break
                group.append(request)
                rows += request.rows
            self._waiting.popleft()
        return group

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            revision, number, group = job
            started = time.perf_counter()
            results = _run(revision, group)
            seconds = time.perf_counter() - started
            try:
                self._loop.call_soon_threadsafe(self._finish, revision, number, group, results, seconds)
            except RuntimeError:  # the loop is closed: nobody waits
                return

    def _finish(
        self,
        revision: Revision,
        number: int,
        group: list[_Waiting],
        results: list[list[Array] | Exception],
        seconds: float,
    ) -> None:
        self._running = []
        self._on_batch(sum(request.rows for request in group), len(group))
        if revision is self._revision:
            self._quick.note(_size_bytes(group), seconds)
        if self._waiting:
            self._flush_soon()  # before the answers are written, so that a thread works meanwhile
        for request, result in zip(group, results, strict=True):
            if request.future.done():  # expired, or its client has gone
                continue
            if isinstance(result, Exception):
                request.future.set_exception(result)
            else:
                request.future.set_result((result, number))


def _size_bytes(group: list[_Waiting]) -> int:
    return sum(array.nbytes for request in group for array in request.feed.values())


def _run(revision: Revision, group: list[_Waiting]) -> list[list[Array] | Exception]:
    """What each request of a batch gets; an error belongs to the request that causes it."""
    try:
        if len(group) == 1:
            return [revision.session.run_arrays(group[0].feed)]
        outputs = revision.session.run_arrays(join_rows([request.feed for request in group]))
    except Exception as error:
        if len(group) == 1:
            return [_blamed(revision, error)]
        return [_run(revision, [request])[0] for request in group]
    parts: list[list[Array] | Exception] = []
    start = 0
    for request in group:
        parts.append([output[start : start + request.rows] for output in outputs])
        start += request.rows
    return parts


def _blamed(revision: Revision, error: Exception) -> Exception:
    """A failed run as the client's mistake, where the model has run before and nothing but the input is new."""
    text = str(error)
    if isinstance(error, MemoryError) or "Failed to allocate memory" in text or "bad_alloc" in text:
        return MemoryError(text)
    if isinstance(error, L0RuntimeError) and revision.session.device.kind == "cpu":
        return InputError(f"the model cannot compute these inputs: {text}")
    return error
