"""How fast is `l0runtime serve` beside KServe's Python SDK and LitServe, serving one model in one run?

    python -m benchmarks.serving.compare --kserve ENV --litserve ENV --out benchmarks/serving/result.json

The servers take turns in blocks of random order; those whose turn it is not are stopped by a signal. Bars:
32 clients: at least 5 times KServe's requests a second and 3 times LitServe's; one client: at most half of KServe's
overhead over a direct `session.run`; no wrong and no lost answer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.serving.exchanges import make_exchanges
from benchmarks.serving.load_client import Outcome, on_loop, percentile, run_clients
from benchmarks.serving.models import write_model
from benchmarks.serving.processes import ServerProcess, start_ours, start_peer
from l0runtime.machine import installed_version, processor_name, usable_cores

CLIENTS = 32


def measure(
    server: ServerProcess, model: Path, protocol: str, clients: int, seconds: float
) -> tuple[Outcome, dict[str, float]]:
    """One block of requests to one server, and the cores that the load client and the server kept busy meanwhile."""
    exchanges = make_exchanges(model, protocol, clients)
    with server.alone():
        # a moment that does not count: caches, and processes that were stopped
        on_loop(run_clients("127.0.0.1", server.port, exchanges, seconds=0.3))
        before = time.process_time(), server.cpu_seconds()
        outcome = on_loop(run_clients("127.0.0.1", server.port, exchanges, seconds=seconds))
        after = time.process_time(), server.cpu_seconds()
    client, served = ((end - start) / outcome.seconds for start, end in zip(before, after, strict=True))
    return outcome, {"client_cores": round(client, 2), "server_cores": round(served, 2)}


def direct_ms(model: Path, runs: int = 500) -> float:
    """Median time of `session.run` on one row."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((1, 784)).astype(np.float32)
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        session.run(None, {"x": x})
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def compare(kserve: Path, litserve: Path, folder: Path, *, rounds: int, seconds: float) -> dict[str, Any]:
    """All blocks, and what follows from them."""
    model = write_model(folder / "model.onnx")
    servers = {
        "l0runtime": start_ours(model, folder / "ours.log"),
        "kserve": start_peer(kserve, "peer_kserve.py", model, "json", folder / "kserve.log"),
        "litserve, one by one": start_peer(
            litserve, "peer_litserve.py", model, "litserve", folder / "lit1.log", "1", "0"
        ),
        "litserve, batches": start_peer(
            litserve, "peer_litserve.py", model, "litserve", folder / "lit2.log", "32", "0.002", "fast"
        ),
    }
    cells = [(name, server.protocol) for name, server in servers.items()]
    cells += [("l0runtime", "binary"), ("kserve", "binary")]
    blocks: list[dict[str, Any]] = []
    order = random.Random(0)
    try:
        for server in servers.values():
            server.wait_until_ready(make_exchanges(model, server.protocol, 1)[0][0])
            server.signal(19)  # SIGSTOP
        for number in range(rounds):
            for clients in (CLIENTS, 1):
                for name, protocol in order.sample(cells, len(cells)):
                    outcome, cores = measure(servers[name], model, protocol, clients, seconds)
                    blocks.append(
                        {
                            "round": number,
                            "server": name,
                            "protocol": protocol,
                            "clients": clients,
                            "requests_per_s": round(outcome.rate, 1),
                            "answered": outcome.answered,
                            "wrong": outcome.wrong,
                            "lost": outcome.lost + outcome.refused,
                            "p50_ms": round(percentile(outcome.latencies_ms, 0.5), 3),
                            "p99_ms": round(percentile(outcome.latencies_ms, 0.99), 3),
                            "direct_ms": round(direct_ms(model), 4) if clients == 1 else None,
                            **cores,
                            "load_average": os.getloadavg()[0],
                        }
                    )
                    print(json.dumps(blocks[-1]), file=sys.stderr)
    finally:
        for server in servers.values():
            server.end()
    return {"machine": machine(kserve, litserve), "seconds": seconds, "blocks": blocks, **verdict(blocks)}


def verdict(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, the ratios, and whether each bar is met."""

    def median(server: str, protocol: str, clients: int, value: str) -> float:
        found = [
            block["p50_ms"] - block["direct_ms"] if value == "overhead_ms" else block[value]
            for block in blocks
            if (block["server"], block["protocol"], block["clients"]) == (server, protocol, clients)
        ]
        return statistics.median(found)

    lit = max(
        median(name, "litserve", CLIENTS, "requests_per_s") for name in ("litserve, one by one", "litserve, batches")
    )
    ours = median("l0runtime", "json", CLIENTS, "requests_per_s")
    ratios = {
        "json, 32 clients, requests/s over kserve": ours / median("kserve", "json", CLIENTS, "requests_per_s"),
        "binary, 32 clients, requests/s over kserve": median("l0runtime", "binary", CLIENTS, "requests_per_s")
        / median("kserve", "binary", CLIENTS, "requests_per_s"),
        "json, 32 clients, requests/s over the better litserve": ours / lit,
        "json, 1 client, overhead over kserve's": median("l0runtime", "json", 1, "overhead_ms")
        / median("kserve", "json", 1, "overhead_ms"),
        "binary, 1 client, overhead over kserve's": median("l0runtime", "binary", 1, "overhead_ms")
        / median("kserve", "binary", 1, "overhead_ms"),
    }
    own = [block for block in blocks if block["server"] == "l0runtime"]
    bars = {
        "at least 5 times kserve": min(value for name, value in ratios.items() if name.endswith("over kserve")) >= 5,
        "at least 3 times litserve": ratios["json, 32 clients, requests/s over the better litserve"] >= 3,
        "at most half of kserve's overhead": max(v for name, v in ratios.items() if "overhead" in name) <= 0.5,
        "no wrong and no lost answer": not any(block["wrong"] or block["lost"] for block in own),
    }
    return {"ratios": {name: round(value, 3) for name, value in ratios.items()}, "bars": bars}


def machine(kserve: Path, litserve: Path) -> dict[str, Any]:
    """What was measured, on what."""

    def version(environment: Path, name: str) -> str:
        found = sorted(environment.glob(f"lib/python3*/site-packages/{name}-*.dist-info"))
        return found[0].name.removesuffix(".dist-info").partition("-")[2] if found else "unknown"

    return {
        "processor": processor_name(),
        "cores": usable_cores(),
        "python": sys.version.split()[0],
        "onnxruntime": onnxruntime.__version__,
        "uvicorn": installed_version("uvicorn"),
        "kserve": version(kserve, "kserve"),
        "litserve": version(litserve, "litserve"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kserve", type=Path, required=True, help="virtual environment with kserve and onnxruntime")
    parser.add_argument(
        "--litserve", type=Path, required=True, help="virtual environment with litserve and onnxruntime"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = compare(
            arguments.kserve, arguments.litserve, Path(folder), rounds=arguments.rounds, seconds=arguments.seconds
        )
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"ratios": result["ratios"], "bars": result["bars"]}, indent=1))
    return 0 if all(result["bars"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
