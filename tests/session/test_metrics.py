"""Runs are counted by outcome, with their time and rows, and only where that was asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import l0runtime
from l0runtime.errors import InputError, MissingDependencyError
from l0runtime.session import SessionMetrics

prometheus_client = pytest.importorskip("prometheus_client")
SaveModel = Callable[..., Path]


def test_runs_are_counted_with_their_time_and_rows(save_model: SaveModel) -> None:
    registry = prometheus_client.CollectorRegistry()
    path = save_model("linear")
    session = l0runtime.load(path, device="cpu", metrics=SessionMetrics(registry))
    session.run({"x": np.ones((3, 3), np.float32)})
    session(np.ones((1, 3), np.float32))
    session.run_async({"x": np.ones((2, 3), np.float32)}).result()
    with pytest.raises(InputError):
        session.run({"q": np.ones(3)})
    model = {"model": str(path)}

    def value(name: str, **labels: str) -> float | None:
        found: float | None = registry.get_sample_value(name, model | labels)
        return found

    assert value("l0runtime_session_runs_total", outcome="ok") == 3
    assert value("l0runtime_session_runs_total", outcome="InputError") == 1
    assert value("l0runtime_session_seconds_count") == 3
    assert 0 < (value("l0runtime_session_seconds_sum") or 0) < 60
    assert (value("l0runtime_session_rows_count"), value("l0runtime_session_rows_sum")) == (3, 6)
    assert [value("l0runtime_session_rows_bucket", le=le) for le in ("1.0", "2.0", "4.0")] == [1, 2, 3]
    session.close()


def test_two_sessions_share_metrics_and_are_told_apart(save_model: SaveModel) -> None:
    registry = prometheus_client.CollectorRegistry()
    metrics = SessionMetrics(registry)
    paths = [save_model("linear"), save_model("linear")]
    for runs, path in enumerate(paths, start=1):
        session = l0runtime.load(path, device="cpu", metrics=metrics)
        for _ in range(runs):
            session(np.ones((1, 3), np.float32))
    counts = [
        registry.get_sample_value("l0runtime_session_runs_total", {"model": str(path), "outcome": "ok"})
        for path in paths
    ]
    assert counts == [1, 2]


def test_without_prometheus_client_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingDependencyError) as raised:
        SessionMetrics()
    assert str(raised.value) == (
        "metrics need prometheus-client, which is not installed. Run: pip install 'l0runtime[metrics]'"
    )
