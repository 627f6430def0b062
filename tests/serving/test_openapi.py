"""The OpenAPI page describes the server that serves it; schemathesis makes requests from it and checks every answer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from running_server import RunningServer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    schemathesis: Any = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

Start = Callable[..., RunningServer]
STATUSES = {200, 400, 404, 405, 408, 413, 415, 422, 429, 503, 504}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_requests_made_from_the_page_get_the_answers_it_promises(start: Start, mode: str) -> None:
    from hypothesis import HealthCheck, given, settings

    server = start({"scale": "g (float[1] x) => (float[1] y) { y = Neg (x) }", "two": "two"})
    schema = schemathesis.openapi.from_url(f"{server.server.rest_address}/openapi.json")
    generation = schemathesis.GenerationMode.POSITIVE if mode == "positive" else schemathesis.GenerationMode.NEGATIVE
    seen: dict[tuple[str, int], int] = {}
    for result in schema.get_all_operations():
        operation = result.ok()

        @given(case=operation.as_strategy(generation_mode=generation))
        @settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def ask(case: Any) -> None:
            response = case.call()
            seen[case.path, response.status_code] = seen.get((case.path, response.status_code), 0) + 1
            assert response.status_code in STATUSES, (case.path, response.status_code, response.text)
            case.validate_response(
                response,
                checks=[
                    schemathesis.checks.not_a_server_error,
                    schemathesis.checks.response_schema_conformance,
                    schemathesis.checks.status_code_conformance,
                ],
            )

        try:
            ask()
        except Exception as error:
            if "Unsatisfiable" not in type(error).__name__:
                raise
    statuses = {status for path, status in seen if path.endswith("/infer")}
    assert statuses >= ({200} if mode == "positive" else {400})
