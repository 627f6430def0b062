"""What did a session do: how many runs, how long, how large? Counted with prometheus-client, if one asks for it.

| metric | labels | meaning |
|---|---|---|
| l0runtime_session_runs_total | model, outcome | calls of run, and merged batches, by "ok" or the error's name |
| l0runtime_session_seconds | model | time of a call, from the inputs to the outputs |
| l0runtime_session_rows | model | first dimension of the first input |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from l0runtime.errors import MissingDependencyError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_SECONDS = (5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class SessionMetrics:
    """Metrics that several sessions share, told apart by the label `model`.

    Args:
        registry: where they are registered; None for prometheus-client's global one. Two of these do not fit into one
            registry.
    Raises:
        MissingDependencyError: prometheus-client is not installed.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        try:
            from prometheus_client import REGISTRY, Counter, Histogram
        except ImportError as error:
            raise MissingDependencyError(
                "metrics need prometheus-client, which is not installed. Run: pip install 'l0runtime[metrics]'"
            ) from error
        where = REGISTRY if registry is None else registry
        self._runs = Counter("l0runtime_session_runs", "Calls of Session.run.", ["model", "outcome"], registry=where)
        self._seconds = Histogram(
            "l0runtime_session_seconds", "Time of a call.", ["model"], buckets=_SECONDS, registry=where
        )
        self._rows = Histogram("l0runtime_session_rows", "Rows of a call.", ["model"], buckets=_ROWS, registry=where)

    def count(self, model: str, inputs: Mapping[str, Any], seconds: float, error: Exception | None) -> None:
        """Record one call.

        Args:
            model: its label.
            inputs: of the call; the first one with a shape tells the rows.
            seconds: it took.
            error: it raised; None if it gave outputs.
        """
        self._runs.labels(model, "ok" if error is None else type(error).__name__).inc()
        if error is not None:
            return
        self._seconds.labels(model).observe(seconds)
        shape = next((value.shape for value in inputs.values() if getattr(value, "shape", ())), None)
        if shape is not None:
            self._rows.labels(model).observe(int(shape[0]))
