"""The OpenAPI page describes the server that serves it; schemathesis makes requests from it and checks every answer."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from running_server import RunningServer

Start = Callable[..., RunningServer]
MANY = """g (bool[2] a, uint8[N,3] b, float16[N] c, bfloat16[1] d, float[N,L] e, double[1,2] f) => (float[N,L] y) {
    y = Neg (e)
}"""
STATUSES = {200, 400, 404, 405, 408, 413, 415, 422, 429, 503, 504}


def test_the_page_says_which_values_and_how_many_fit(start: Start) -> None:
    server = start({"many": MANY})
    page = server.request("GET", "/openapi.json").json["paths"]["/v2/models/many/infer"]["post"]
    request = page["requestBody"]["content"]["application/json"]
    tensors = {
        found["properties"]["name"]["const"]: found["properties"]
        for found in request["schema"]["properties"]["inputs"]["items"]["oneOf"]
    }
    half = 2.0**103  # half a step of float32 at its largest
    largest = float(np.finfo(np.float32).max)
    values = {name: found["data"]["items"] for name, found in tensors.items()}
    assert values["a"] == {"type": "boolean"}
    assert values["b"] == {"type": "integer", "minimum": 0, "maximum": 255}
    assert values["c"] == {"type": "number", "exclusiveMinimum": -65520, "exclusiveMaximum": 65520}
    assert values["e"] == {
        "type": "number",
        "exclusiveMinimum": -largest - half,
        "exclusiveMaximum": largest + half,
    }
    assert values["f"] == {"type": "number"}
    sizes = {name: (found["data"].get("minItems"), found["data"].get("maxItems")) for name, found in tensors.items()}
    assert sizes == {
        "a": (2, 2),
        "b": (None, None),
        "c": (None, None),
        "d": (1, 1),
        "e": (None, None),
        "f": (2, 2),
    }
    answer = server.infer("many", request["example"])
    assert (answer.status, answer.json["outputs"][0]["shape"]) == (200, [1, 1])


def test_the_page_gives_no_example_where_it_would_be_endless(start: Start) -> None:
    server = start({"large": "g (float[N,3000] x) => (float[N,3000] y) { y = Neg (x) }"})
    page = server.request("GET", "/openapi.json").json["paths"]["/v2/models/large/infer"]["post"]
    assert set(page["requestBody"]["content"]["application/json"]) == {"schema"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_requests_made_from_the_page_get_the_answers_it_promises(start: Start, mode: str) -> None:
    from hypothesis import HealthCheck, given, settings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schemathesis: Any = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
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
