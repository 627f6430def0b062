"""Does a server stay up, and answer with the right status, whatever its clients do?

    python -m benchmarks.serving.faults --schemathesis ENVIRONMENT --out benchmarks/serving/faults.json

One server process, with short limits, bears in turn: every case of `fault_cases`; requests whose bytes are spoilt, in
the binary extension, in HTTP itself and in gRPC messages; and schemathesis on its OpenAPI page (left out where no
environment is given). Then it must still answer, have logged no error of its own, and hold no connection.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import grpc
import onnx
import onnx.parser

from benchmarks.serving.fault_cases import CLOSED, GOOD, LIMITS, PATH, Fault, faults, request
from benchmarks.serving.fuzzing import HTTP_TOKENS, X, is_right, mutated, spoilt_request, values_of
from benchmarks.serving.processes import ServerProcess, free_port, start_ours
from l0runtime.serving.grpc_messages import SERVICE, message_classes

MODELS = {
    name: f"""<ir_version: 8, opset_import: ["": 17]>
    g (float[{rows},3] x) => (float[{rows},2] y) <float[3,2] w={{1,2,3,4,5,6}}> {{ y = MatMul (x, w) }}"""
    for name, rows in (("linear", "N"), ("fixed", "1"))
}
# 504 is the right answer to a client that asks for an answer within microseconds, and gets none in that time
SCHEMATHESIS = 'checks.not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "504"]\n'
SECONDS = 20.0  # after which a client here gives up, and the case has failed
TIMED_OUT = -1


def status_of(port: int, fault: Fault) -> int:
    """What a client that does this reads: a status, CLOSED, or TIMED_OUT."""
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as client:
        # where the server ended the connection while it was being written to, its answer may be there
        with contextlib.suppress(OSError):
            fault.ask(client)
        try:
            answer = client.recv(65536)
        except TimeoutError:
            return TIMED_OUT
        except OSError:
            return CLOSED
    return int(answer.split(b" ", 2)[1]) if answer else CLOSED


def answers_rightly(port: int) -> bool:
    """Whether a good request is answered with the right values."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    connection.request("POST", PATH, GOOD)
    answer = connection.getresponse()
    right = answer.status == 200 and json.loads(answer.read())["outputs"][0]["data"] == [11, 14]
    connection.close()
    return right


def try_all(port: int) -> dict[str, Any]:
    """Every fault, a good request after each, and those that got another answer than the right one."""
    wrong = []
    kinds: collections.Counter[str] = collections.Counter()
    for fault in faults():
        found = status_of(port, fault)
        kinds[fault.kind] += 1
        if found not in fault.expected or not answers_rightly(port):
            wrong.append({"kind": fault.kind, "name": fault.name, "expected": fault.expected, "found": found})
    return {"cases": dict(kinds), "wrong": wrong}


def try_many_at_once(port: int, number: int = 300) -> dict[str, Any]:
    """Half-open connections by the hundred, while a good client is served."""
    held = [socket.create_connection(("127.0.0.1", port), timeout=SECONDS) for _ in range(number)]
    for index, client in enumerate(held):
        client.sendall(request(GOOD)[: index % 150])
    served = sum(answers_rightly(port) for _ in range(50))
    ended = 0
    for client in held:
        while client.recv(65536):
            pass
        ended += 1
        client.close()
    return {"half_open": number, "good_requests": 50, "served": served, "ended_by_the_server": ended}


def fuzz_binary(port: int, number: int, seed: int) -> dict[str, Any]:
    """Spoilt requests of the binary extension: 400, or 200 with the right values."""
    generator = random.Random(seed)
    statuses: collections.Counter[int] = collections.Counter()
    wrong: list[str] = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    for _ in range(number):
        head, values, length = spoilt_request(generator)
        connection.request("POST", PATH, head + values, {"Inference-Header-Content-Length": str(length)})
        answer = connection.getresponse()
        body = answer.read()
        statuses[answer.status] += 1
        if answer.status == 200:
            right = is_right(answer.getheader("inference-header-content-length"), body, values_of(head, values, length))
        else:
            right = answer.status == 400 and bool(json.loads(body)["error"])
        if not right:
            wrong.append(f"{answer.status} for {head!r} {values!r} {length}")
    connection.close()
    return {"requests": number, "statuses": shown(statuses), "wrong": wrong}


def fuzz_http(port: int, number: int, seed: int) -> dict[str, Any]:
    """Spoilt HTTP: any status of the client's, a right answer, or the end of the connection; never a 500."""
    generator = random.Random(seed)
    statuses: collections.Counter[int] = collections.Counter()
    wrong: list[str] = []
    for _ in range(number):
        content = mutated(generator, request(GOOD, "Accept: */*"), HTTP_TOKENS)
        with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as client:
            try:
                client.sendall(content)
                client.shutdown(socket.SHUT_WR)
                answer = client.recv(65536)
            except ConnectionError:
                answer = b""
        status = int(answer.split(b" ", 2)[1]) if answer else CLOSED
        statuses[status] += 1
        if not (status in (CLOSED, 100, 200) or 400 <= status < 500):
            wrong.append(f"{status} for {content!r}")
    return {"requests": number, "statuses": shown(statuses), "wrong": wrong}


def fuzz_grpc(port: int, number: int, seed: int) -> dict[str, Any]:
    """Spoilt gRPC messages: INVALID_ARGUMENT or NOT_FOUND, a time limit that was spoilt into one, or an answer."""
    generator = random.Random(seed)
    content = message_classes()["ModelInferRequest"](
        model_name="linear",
        inputs=[{"name": "x", "datatype": "FP32", "shape": [2, 3]}],
        raw_input_contents=[X.tobytes()],
    ).SerializeToString()
    codes: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        for _ in range(number):
            spoilt = mutated(generator, content)
            try:
                call(spoilt, timeout=SECONDS)
                code = "OK"
            except grpc.RpcError as error:
                code = error.code().name
            codes[code] += 1
            if code not in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "DEADLINE_EXCEEDED"):
                wrong.append(f"{code} for {spoilt!r}")
    return {"calls": number, "codes": dict(codes.most_common()), "wrong": wrong}


def schemathesis(environment: Path, port: int, folder: Path, examples: int, *options: str) -> dict[str, Any]:
    """A bounded run of schemathesis, with all of its checks unless options say otherwise."""
    report = folder / "schemathesis.xml"
    (folder / "schemathesis.toml").write_text(SCHEMATHESIS)
    command = [
        str(environment / "bin" / "schemathesis"),
        "run",
        f"http://127.0.0.1:{port}/openapi.json",
        f"--max-examples={examples}",
        "--seed=1",
        "--request-timeout=10",
        "--workers=1",
        "--report=junit",
        f"--report-junit-path={report}",
        "--no-color",
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True).stdout.strip()
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failures = [
        {"operation": case.get("name"), "message": f"{found.get('message')} {found.text or ''}"[:2000]}
        for case in cases
        for found in case
        if found.tag in ("failure", "error")
    ]
    tail = done.stdout[done.stdout.find("SUMMARY") :].splitlines()
    return {
        "version": version,
        "options": list(options),
        "configuration": SCHEMATHESIS.strip(),
        "max_examples": examples,
        "exit_status": done.returncode,
        "operations": len(cases),
        "failures": failures,
        "summary": [line for line in tail if line and "http" not in line and str(folder) not in line],
    }


def shown(statuses: collections.Counter[int]) -> dict[str, int]:
    """Counts by status, most frequent first."""
    return {"closed" if status == CLOSED else str(status): count for status, count in statuses.most_common()}


def run(folder: Path, *, requests: int, examples: int, environment: Path | None) -> dict[str, Any]:
    """All of it, on one server."""
    for name, text in MODELS.items():
        onnx.save(onnx.parser.parse_model(text), folder / f"{name}.onnx")
    model, more = folder / "linear.onnx", str(folder / "fixed.onnx")
    grpc_port = free_port()
    log = folder / "server.log"
    server = start_ours(model, log, more, *LIMITS, "--reload", "0", grpc_port=grpc_port, name="linear")
    try:
        wait(server)
        before = open_files(server), server.resident_bytes()
        result: dict[str, Any] = {
            "faults": try_all(server.port),
            "many_at_once": try_many_at_once(server.port),
            "binary_fuzz": fuzz_binary(server.port, requests, seed=1),
            "http_fuzz": fuzz_http(server.port, requests // 2, seed=2),
            "grpc_fuzz": fuzz_grpc(grpc_port, requests // 2, seed=3),
        }
        if environment is not None:
            # that data has as many values as its shape can be said in a schema only where no dimension is dynamic
            only = "--include-path-regex=/fixed"
            result["schemathesis_static"] = schemathesis(environment, server.port, folder, examples, only)
            but = "--exclude-checks=positive_data_acceptance"
            result["schemathesis_all"] = schemathesis(environment, server.port, folder, examples, but)
        time.sleep(3)  # idle connections are ended
        result["afterwards"] = {
            "alive": server.process.poll() is None,
            "answers_rightly": answers_rightly(server.port),
            "own_errors_logged": server.log.read_bytes().count(b'"level":"error"'),
            "open_files_more": open_files(server) - before[0],
            "memory_more_bytes": server.resident_bytes() - before[1],
        }
    finally:
        server.end()
    return result


def open_files(server: ServerProcess) -> int:
    """Files and connections that the server holds."""
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def wait(server: ServerProcess, seconds: float = 60.0) -> None:
    """Until the server answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.process.poll() is None:
        try:
            if answers_rightly(server.port):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"not ready: {server.log.read_text(errors='replace')[-2000:]}")


def bars(result: dict[str, Any]) -> dict[str, bool]:
    """What must hold."""
    after, many = result["afterwards"], result["many_at_once"]
    fuzzed = ("binary_fuzz", "http_fuzz", "grpc_fuzz")
    met = {
        "every fault got the right status": not result["faults"]["wrong"],
        "half-open connections hold up nobody, and are ended": many["served"] == many["good_requests"]
        and many["ended_by_the_server"] == many["half_open"],
        "spoilt bytes never got a wrong answer or a status of 500": not any(result[name]["wrong"] for name in fuzzed),
        "no crash, and no error of the server's own": after["alive"]
        and after["answers_rightly"]
        and not after["own_errors_logged"],
        "no connection was left open": after["open_files_more"] <= 2,
    }
    for name in ("schemathesis_static", "schemathesis_all"):
        if name in result:
            found = result[name]
            met[f"{name} found nothing"] = not found["failures"] and found["exit_status"] == 0
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemathesis", type=Path, help="virtual environment with schemathesis")
    parser.add_argument("--requests", type=int, default=10_000, help="spoilt requests of the binary extension")
    parser.add_argument("--examples", type=int, default=100, help="of schemathesis, for each operation")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = run(
            Path(folder),
            requests=arguments.requests,
            examples=arguments.examples,
            environment=arguments.schemathesis,
        )
    met = bars(result)
    result = {"took_s": round(time.monotonic() - started, 1), **result, "bars": met}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
