"""The checks of the serving benchmarks can fail: what they must notice, they notice."""

# ruff: noqa: E402 - what is imported below needs the modules that are looked for first
from __future__ import annotations

import copy
import random
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

for _module in ("grpc", "orjson"):
    pytest.importorskip(_module, reason="the extra `serve` is not installed")

from benchmarks.serving import compare, endurance, faults
from benchmarks.serving.exchanges import make_exchanges
from benchmarks.serving.fault_cases import Fault, send
from benchmarks.serving.fault_cases import faults as all_faults
from benchmarks.serving.fuzzing import SEED_JSON, X, is_right, mutated, spoilt_request, values_of
from benchmarks.serving.load_client import Exchange, unchunked
from benchmarks.serving.models import write_model


def block(server: str, protocol: str, clients: int, rate: float, p50_ms: float) -> dict[str, Any]:
    return {
        "server": server,
        "protocol": protocol,
        "clients": clients,
        "requests_per_s": rate,
        "p50_ms": p50_ms,
        "direct_ms": 0.1 if clients == 1 else None,
        "wrong": 0,
        "lost": 0,
    }


def blocks(ours: float, overhead_ms: float) -> list[dict[str, Any]]:
    found = []
    for protocol in ("json", "binary"):
        found += [block("l0runtime", protocol, 32, ours, 1.0), block("kserve", protocol, 32, 100.0, 1.0)]
        found += [block("l0runtime", protocol, 1, 1.0, 0.1 + overhead_ms), block("kserve", protocol, 1, 1.0, 1.1)]
    found += [block(name, "litserve", 32, rate, 1.0) for name, rate in (("litserve, one by one", 150.0),)]
    return [*found, block("litserve, batches", "litserve", 32, 90.0, 1.0)]


def test_each_bar_of_the_comparison_can_be_missed() -> None:
    met = compare.verdict(blocks(500.0, 0.5))
    assert all(met["bars"].values())
    assert met["ratios"]["json, 32 clients, requests/s over the better litserve"] == round(500 / 150, 3)
    assert not compare.verdict(blocks(499.0, 0.5))["bars"]["at least 5 times kserve"]
    assert not compare.verdict(blocks(449.0, 0.5))["bars"]["at least 3 times litserve"]
    assert not compare.verdict(blocks(500.0, 0.51))["bars"]["at most half of kserve's overhead"]
    wrong = blocks(500.0, 0.5)
    wrong[0]["wrong"] = 1
    assert not compare.verdict(wrong)["bars"]["no wrong and no lost answer"]


def test_each_bar_of_endurance_can_be_missed() -> None:
    phase = {"answered": 100_000, "wrong": 0, "lost": 0, "exit_status": 0}
    good: dict[str, Any] = {
        "steady": phase | {"memory_growth_after_that_bytes": 0},
        "reload": phase | {"reloads": 5},
        "sigterm": [dict(phase)],
        "grpc": phase | {"reloads": 2},
    }
    assert all(endurance.bars(good, 100_000).values())
    for change in (
        lambda found: found["steady"].update(answered=99_999),
        lambda found: found["reload"].update(wrong=1),
        lambda found: found["sigterm"][0].update(lost=1),
        lambda found: found["steady"].update(memory_growth_after_that_bytes=endurance.GROWTH_BYTES + 1),
        lambda found: found["grpc"].update(reloads=1),
        lambda found: found["sigterm"][0].update(exit_status=1),
    ):
        bad = copy.deepcopy(good)
        change(bad)
        assert list(endurance.bars(bad, 100_000).values()).count(False) == 1


def test_an_answer_must_be_that_of_the_version_it_names(tmp_path: Path) -> None:
    models = [write_model(tmp_path / f"{seed}.onnx", seed=seed) for seed in (0, 1)]
    first, second = (make_exchanges(model, "json", 1) for model in models)
    joined = endurance.by_version(first, second)[0][0]
    import numpy as np
    import onnxruntime
    import orjson

    x = np.random.default_rng([0, 0]).standard_normal((1, 784)).astype(np.float32)
    for number, model in enumerate(models):
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        y = session.run(["y"], {"x": x})[0].reshape(-1).tolist()
        for version in (1, 2, 3):
            body = orjson.dumps({"model_name": "model", "model_version": str(version), "outputs": [{"data": y}]})
            assert joined.check(b"HTTP/1.1 200 OK", body) == (version % 2 == 1 - number)
    assert not joined.check(b"HTTP/1.1 200 OK", b'{"outputs":[]}')


def test_an_answer_that_differs_from_a_right_one_is_compared_anew() -> None:
    seen: list[bytes] = []

    def check(head: bytes, body: bytes) -> bool:
        seen.append(body)
        return head.startswith(b"HTTP/1.1 200") and body == b"right"

    exchange = Exchange(b"", check)
    for _ in range(3):
        assert exchange.is_right(b"HTTP/1.1 200 OK", b"right")
        assert not exchange.is_right(b"HTTP/1.1 200 OK", b"wrong")
        assert not exchange.is_right(b"HTTP/1.1 500 No", b"right")
    assert seen.count(b"wrong") == 3
    assert seen.count(b"right") == 1 + 3


def test_a_body_in_chunks_is_put_together() -> None:
    content = b"head\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    assert unchunked(content, 8) == b"abcde"
    assert unchunked(content[:-3], 8) is None


def test_spoilt_requests_are_the_same_for_a_seed_and_differ_within_it() -> None:
    one, two = ([spoilt_request(random.Random(7)) for _ in range(1)] for _ in range(2))
    assert one == two
    generator = random.Random(1)
    assert len({mutated(generator, SEED_JSON) for _ in range(50)}) > 40
    assert values_of(b"abc", b"defg", 3) == b"defg"
    assert values_of(b"abc", b"defg", 1) == b"bcdefg"


def test_a_wrong_value_is_no_right_answer() -> None:
    body = b'{"outputs":[{"data":[11,14,40,52]}]}'  # [1,0,2] W, and [3,4,5] W, by hand
    assert is_right(None, body, X.tobytes())
    assert not is_right(None, body.replace(b"52", b"53"), X.tobytes())


def test_the_status_of_a_fault_is_what_the_server_says() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer(content: bytes) -> None:
            client, _ = listening.accept()
            with client:
                client.recv(100)
                client.sendall(content)

        for content, status in ((b"HTTP/1.1 418 Teapot\r\n\r\n", 418), (b"", faults.CLOSED)):
            thread = threading.Thread(target=answer, args=(content,))
            thread.start()
            assert faults.status_of(listening.getsockname()[1], Fault("", "", send(b"x"), (200,))) == status
            thread.join()


def test_every_fault_has_a_name_of_its_own() -> None:
    names = [(fault.kind, fault.name) for fault in all_faults()]
    assert len(names) == len(set(names)) > 80
