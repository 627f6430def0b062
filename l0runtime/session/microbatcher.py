"""How do many small requests share one run of a model without anyone waiting for a batch to fill?

Work-conserving: one thread takes whatever has queued up while the last batch ran, so a lone request runs at once, and
the busier the server the larger the batches. A delay can be set, but is not needed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from l0runtime.errors import DeadlineError, InputError, OptionError, QueueFullError, UnsupportedModelError
from l0runtime.session.arrays import from_numpy
from l0runtime.session.batches import Feed, RowGuard, join_rows
from l0runtime.session.core import Session


@dataclass
class _Request:
    feed: Feed
    kind: Any
    rows: int
    arrived: float
    deadline: float | None
    future: Future[dict[str, Any]] = field(default_factory=Future)

    @property
    def key(self) -> tuple[object, ...]:
        """Requests with equal keys fit into one batch."""
        return tuple((name, array.shape[1:]) for name, array in self.feed.items())


class MicroBatcher:
    """Merges concurrent requests to one session into batches, which the session's metrics count as its runs.

    Args:
        session: the model, with rows first in every input and output.
        max_batch: rows in a merged batch; a single larger request runs by itself.
        max_delay_ms: how long the first request of an incomplete batch waits for company, at most half of the time that
            any of them has; 0 for not at all.
        max_queue: requests that may wait; one more is refused.
    Raises:
        UnsupportedModelError: the model's shapes do not allow it. Raised by the requests: the model mixes rows.
        OptionError: a limit without a meaning.
    """

    def __init__(
        self, session: Session, *, max_batch: int = 32, max_delay_ms: float = 0.0, max_queue: int = 1024
    ) -> None:
        if max_batch < 1 or max_queue < 1 or max_delay_ms < 0:
            raise OptionError(
                f"max_batch = {max_batch}, max_queue = {max_queue}, max_delay_ms = {max_delay_ms}: "
                "expected at least 1, 1 and 0."
            )
        self._session = session
        self._guard = RowGuard(session.inputs, session.outputs, session.metadata)
        self._max_batch, self._max_delay, self._max_queue = max_batch, max_delay_ms / 1e3, max_queue
        self._queue: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="l0runtime-batcher", daemon=True)
        self._worker.start()

    def submit(self, inputs: Mapping[str, Any], *, timeout_ms: float | None = None) -> Future[dict[str, Any]]:
        """Queue a request; the future gives what `Session.run` would, or raises its error.

        Args:
            inputs: as for `Session.run`, in CPU memory.
            timeout_ms: the request fails with DeadlineError if it has not started by then.
        Raises:
            InputError: the inputs do not fit; the queue is not touched.
            QueueFullError: too many requests wait, or the batcher is closed.
        """
        feed, kind = self._session.check(inputs)
        sizes = {len(array) for array in feed.values()}
        if len(sizes) != 1:
            raise InputError(f"inputs have different numbers of rows: {sorted(sizes)}.")
        now = time.monotonic()
        request = _Request(feed, kind, sizes.pop(), now, None if timeout_ms is None else now + timeout_ms / 1e3)
        with self._changed:
            if self._closed:
                raise QueueFullError("the batcher is closed; it takes no more requests.")
            if len(self._queue) >= self._max_queue:
                raise QueueFullError(f"{len(self._queue)} requests wait already; try again later.")
            self._queue.append(request)
            self._changed.notify()
        return request.future

    def run(self, inputs: Mapping[str, Any], *, timeout_ms: float | None = None) -> dict[str, Any]:
        """`submit`, and wait for the result."""
        return self.submit(inputs, timeout_ms=timeout_ms).result()

    def close(self) -> None:
        """Finish the requests in the queue, then stop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._worker.join()

    def __enter__(self) -> MicroBatcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        while (group := self._take()) is not None:
            if group:
                self._serve(group)

    def _take(self) -> list[_Request] | None:
        """The next requests that fit into one batch; None when closed and empty."""
        with self._changed:
            while not self._queue:
                if self._closed:
                    return None
                self._changed.wait()
            if self._max_delay:
                while sum(r.rows for r in self._queue) < self._max_batch and not self._closed:
                    left = self._end_of_delay() - time.monotonic()
                    if left <= 0:
                        break
                    self._changed.wait(left)
            first = self._queue[0].key
            group: list[_Request] = []
            rows = 0
            while self._queue and self._queue[0].key == first:
                if group and rows + self._queue[0].rows > self._max_batch:
                    break
                request = self._queue.popleft()
                if not request.future.set_running_or_notify_cancel():
                    continue
                if request.deadline is not None and time.monotonic() > request.deadline:
                    request.future.set_exception(DeadlineError("the request waited longer than its timeout."))
                    continue
                group.append(request)
                rows += request.rows
            return group

    def _end_of_delay(self) -> float:
        """When the batch must start: the first request has waited long enough, or one is near its deadline."""
        first = self._queue[0].arrived
        ends = [first + self._max_delay]
        for request in self._queue:
            if request.deadline is not None:
                # in the middle of its time, as starting at the deadline itself would be too late
                ends.append((request.arrived + request.deadline) / 2)
        return min(ends)

    def _serve(self, group: list[_Request]) -> None:
        try:
            if len(group) > 1:
                feed = join_rows([request.feed for request in group])
                try:
                    self._guard.check(self._session.run_arrays, feed)
                except UnsupportedModelError as error:  # nobody's request is at fault: the model cannot be batched
                    for request in group:
                        request.future.set_exception(error)
                    return
            else:
                feed = group[0].feed
            outputs = self._session.run_batch(feed)
        except Exception as error:
            if len(group) == 1:
                group[0].future.set_exception(error)
                return
            for request in group:  # an error belongs to the request that caused it
                self._serve([request])
            return
        start = 0
        names = [spec.name for spec in self._session.outputs]
        for request in group:
            part = [output[start : start + request.rows] for output in outputs] if len(group) > 1 else outputs
            start += request.rows
            with suppress(InvalidStateError):
                request.future.set_result(
                    {name: from_numpy(array, request.kind) for name, array in zip(names, part, strict=True)}
                )
