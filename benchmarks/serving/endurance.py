"""Does a server under load lose nothing, answer nothing wrongly and keep its memory, also in a reload and in SIGTERM?

    python -m benchmarks.serving.endurance --out benchmarks/serving/endurance.json

1. `steady`: 32 clients, JSON and binary, until the wanted number of answers; the memory is looked at as they go.
2. `reload`: the model's file is replaced again and again by one of other weights; each answer must be that of the
   version it names.
3. `sigterm`, several times: clients that open a connection for every answer that ended one, until they are refused.
4. `grpc`, with a reload and SIGTERM at its end.

Every answer is compared with onnxruntime's own. Nothing may be wrong or lost. What is refused is not lost: a connection
that was not taken, and a call that was answered with UNAVAILABLE, which says that it was not run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from benchmarks.serving.exchanges import make_exchanges
from benchmarks.serving.grpc_load import run_grpc_clients
from benchmarks.serving.load_client import Exchange, Outcome, on_loop, percentile, run_clients
from benchmarks.serving.models import write_model
from benchmarks.serving.processes import ServerProcess, free_port, start_ours
from l0runtime.machine import installed_version, processor_name, usable_cores

CLIENTS = 32
GROWTH_BYTES = 2 * 2**20  # what a heap may move by while nothing leaks; 100,000 leaked requests would be far more


def mixed_exchanges(model: Path, clients: int = CLIENTS) -> list[list[Exchange]]:
    """Clients that take turns between JSON and binary tensors."""
    pairs = zip(make_exchanges(model, "json", clients), make_exchanges(model, "binary", clients), strict=True)
    return [[one for two in zip(*pair, strict=True) for one in two] for pair in pairs]


def by_version(first: list[list[Exchange]], second: list[list[Exchange]]) -> list[list[Exchange]]:
    """Exchanges whose answers are right if they are those of the version that they name: odd ones are the first's."""

    def joined(one: Exchange, two: Exchange) -> Exchange:
        def check(head: bytes, body: bytes) -> bool:
            at = body.find(b'"model_version":"') + 17
            version = body[at : body.find(b'"', at)]
            return version.isdigit() and (one if int(version) % 2 else two).check(head, body)

        return Exchange(one.request, check)

    return [[joined(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(first, second, strict=True)]


def steady(server: ServerProcess, exchanges: list[list[Exchange]], answers: int, most_s: float) -> dict[str, Any]:
    """Load until the wanted number of answers, and the resident memory at every tenth of them."""
    outcome = Outcome()
    memory = []
    for _ in range(10):
        part = on_loop(run_clients("127.0.0.1", server.port, exchanges, seconds=most_s / 10, most=answers // 10))
        memory.append(server.resident_bytes())
        add(outcome, part)
    settled, growth = memory[1], memory[-1] - memory[1]
    return {
        **counts(outcome),
        "requests_per_s": round(outcome.rate),
        "p99_ms": round(percentile(outcome.latencies_ms, 0.99), 2),
        "memory_after_a_fifth_bytes": settled,
        "memory_growth_after_that_bytes": growth,
        "memory_bytes": memory,
    }


def add(total: Outcome, part: Outcome) -> None:
    """Sum up two outcomes."""
    for name in ("answered", "wrong", "lost", "refused", "seconds"):
        setattr(total, name, getattr(total, name) + getattr(part, name))
    total.latencies_ms += part.latencies_ms
    total.first_wrong = total.first_wrong or part.first_wrong


def counts(outcome: Outcome) -> dict[str, Any]:
    """What is to be zero, and what is not."""
    return {
        "answered": outcome.answered,
        "wrong": outcome.wrong,
        "lost": outcome.lost,
        "refused": outcome.refused,
        "seconds": round(outcome.seconds, 2),
        **({"first_wrong": outcome.first_wrong} if outcome.first_wrong else {}),
    }


async def while_replacing(load: Any, model: Path, seeds: list[int], every_s: float) -> Outcome:
    """Load while the model's file is replaced by one of each seed in turn, each at once."""

    async def replace() -> None:
        for seed in seeds:
            await asyncio.sleep(every_s)
            write_model(model, seed=seed)

    outcome, _ = await asyncio.gather(load, replace())
    found: Outcome = outcome
    return found


async def while_ending(load: Any, server: ServerProcess, after_s: float) -> tuple[Outcome, int]:
    """Load while the server gets SIGTERM, and its exit status."""

    async def end() -> int:
        await asyncio.sleep(after_s)
        server.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(server.process.wait, 30)

    outcome, status = await asyncio.gather(load, end())
    return outcome, status


def events(server: ServerProcess, name: str) -> int:
    """How often a server logged an event."""
    lines = server.log.read_bytes().splitlines()
    return sum(orjson.loads(line)["event"] == name for line in lines if line.startswith(b"{"))


def run(folder: Path, *, answers: int, seconds: float, endings: int) -> dict[str, Any]:
    """All phases."""
    result: dict[str, Any] = {}
    one, two = write_model(folder / "one.onnx", seed=0), write_model(folder / "two.onnx", seed=1)
    first, second = mixed_exchanges(one), mixed_exchanges(two)
    versions = by_version(first, second)
    model = write_model(folder / "model.onnx", seed=0)

    def started(name: str, *options: str, grpc_port: int | None = None) -> ServerProcess:
        server = start_ours(model, folder / f"{name}.log", *options, grpc_port=grpc_port)
        server.wait_until_ready(first[0][0])
        return server

    def guarded(server: ServerProcess, phase: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return phase()
        finally:
            server.end()

    server = started("steady", "--reload", "0")
    result["steady"] = guarded(server, lambda: steady(server, first, answers, seconds))

    def reloading() -> dict[str, Any]:
        load = run_clients("127.0.0.1", server.port, versions, seconds=4.0)
        outcome = on_loop(while_replacing(load, model, [1, 0, 1, 0, 1], 0.6))
        return {**counts(outcome), "reloads": events(server, "model_reloaded")}

    server = started("reload", "--reload", "0.1")
    result["reload"] = guarded(server, reloading)
    write_model(model, seed=0)

    result["sigterm"] = []
    for number in range(endings):
        server = started(f"sigterm{number}", "--drain", "0.5", "--reload", "0")
        load = run_clients("127.0.0.1", server.port, first, seconds=20.0, reconnects=True)
        outcome, status = on_loop(while_ending(load, server, 0.3 + random.Random(number).random() / 10))
        result["sigterm"].append({**counts(outcome), "exit_status": status})

    port = free_port()
    server = started("grpc", "--reload", "0.1", "--drain", "0.5", grpc_port=port)
    result["grpc"] = guarded(server, lambda: over_grpc(server, port, [one, two], model))
    return result


def over_grpc(server: ServerProcess, port: int, versions: list[Path], model: Path) -> dict[str, Any]:
    """Calls of 32 clients while the file is replaced twice, and then the server ends."""

    async def all_of_it() -> tuple[Outcome, int]:
        load = run_grpc_clients(f"127.0.0.1:{port}", versions, CLIENTS, seconds=20.0)
        replaced = while_replacing(load, model, [1, 0], 0.8)
        return await while_ending(replaced, server, 3.0)

    outcome, status = on_loop(all_of_it())
    return {**counts(outcome), "reloads": events(server, "model_reloaded"), "exit_status": status}


def bars(result: dict[str, Any], answers: int) -> dict[str, bool]:
    """What must hold."""
    phases = [result["steady"], result["reload"], *result["sigterm"], result["grpc"]]
    return {
        f"at least {answers} answers in the steady phase": result["steady"]["answered"] >= answers,
        "no wrong answer": not any(phase["wrong"] for phase in phases),
        "no lost request": not any(phase["lost"] for phase in phases),
        "memory is flat": result["steady"]["memory_growth_after_that_bytes"] <= GROWTH_BYTES,
        "every reload was taken": result["reload"]["reloads"] == 5 and result["grpc"]["reloads"] == 2,
        "SIGTERM ended each server well": all(
            phase["exit_status"] == 0 and phase["answered"] > CLIENTS for phase in (*result["sigterm"], result["grpc"])
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=120_000)
    parser.add_argument("--seconds", type=float, default=120.0, help="at most, for the steady phase")
    parser.add_argument("--endings", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), answers=arguments.answers, seconds=arguments.seconds, endings=arguments.endings)
    met = bars(result, min(arguments.answers, 100_000))
    machine = {"processor": processor_name(), "cores": usable_cores(), "python": sys.version.split()[0]}
    machine |= {name: installed_version(name) or "unknown" for name in ("uvicorn", "grpcio")}
    result = {"machine": machine, "took_s": round(time.monotonic() - started, 1), **result, "bars": met}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
