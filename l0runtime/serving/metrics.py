"""Which numbers does an operator see? Prometheus metrics of a server, served at /metrics.

| metric | labels | meaning |
|---|---|---|
| l0runtime_requests_total | model, protocol, status | inference requests answered, by HTTP status |
| l0runtime_request_seconds | model, protocol | time from the whole request to the written answer |
| l0runtime_batch_rows | model | rows in a run |
| l0runtime_batch_requests_total, l0runtime_batches_total | model | their quotient: requests that shared a run |
| l0runtime_queue_requests | model | requests that wait now |
| l0runtime_model_version | model | the revision in use |
| l0runtime_reloads_total | model, outcome | replaced files: taken or refused |
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)


class Metrics:
    """The metrics of one server, in a registry of their own, so that several servers fit into one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "l0runtime_requests",
            "Inference requests answered.",
            ["model", "protocol", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "l0runtime_request_seconds",
            "Time from the whole request to the written answer.",
            ["model", "protocol"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch_rows = Histogram(
            "l0runtime_batch_rows", "Rows in a run.", ["model"], buckets=_ROWS, registry=self.registry
        )
        self.batch_requests = Counter(
            "l0runtime_batch_requests", "Requests in all runs.", ["model"], registry=self.registry
        )
        self.batches = Counter("l0runtime_batches", "Runs.", ["model"], registry=self.registry)
        self.queue = Gauge("l0runtime_queue_requests", "Requests that wait now.", ["model"], registry=self.registry)
        self.version = Gauge("l0runtime_model_version", "Revision in use.", ["model"], registry=self.registry)
        self.reloads = Counter("l0runtime_reloads", "Replaced files.", ["model", "outcome"], registry=self.registry)

    def of_model(self, name: str) -> ModelMetrics:
        """The metrics of one model, with their labels resolved once."""
        return ModelMetrics(self, name)

    def page(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)


class ModelMetrics:
    """The metrics of one model."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics, self._model = metrics, model
        self._requests: dict[tuple[str, int], Counter] = {}
        self._seconds: dict[str, Histogram] = {
            protocol: metrics.seconds.labels(model, protocol) for protocol in ("rest", "grpc")
        }
        self._rows = metrics.batch_rows.labels(model)
        self._batches = metrics.batches.labels(model)
        self._batch_requests = metrics.batch_requests.labels(model)
        self.version = metrics.version.labels(model)
        self.reload_taken = metrics.reloads.labels(model, "taken")
        self.reload_refused = metrics.reloads.labels(model, "refused")

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Ask for the queue's length whenever the page is read."""
        self._metrics.queue.labels(self._model).set_function(length)

    def answered(self, protocol: str, status: int, seconds: float) -> None:
        """Count one answer."""
        counter = self._requests.get((protocol, status))
        if counter is None:
            counter = self._metrics.requests.labels(self._model, protocol, str(status))
            self._requests[protocol, status] = counter
        counter.inc()
        self._seconds[protocol].observe(seconds)

    def batch(self, rows: int, requests: int) -> None:
        """Count one run."""
        self._batches.inc()
        self._batch_requests.inc(requests)
        self._rows.observe(rows)
