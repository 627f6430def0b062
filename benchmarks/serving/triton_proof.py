"""Does a real tritonserver serve what `l0runtime export triton` writes, with the same outputs, and in batches?

The binary in the PyPI package `nvidia-pytriton` is started on an exported repository (python backend, since that
binary has no other), 32 clients ask it, and its statistics tell the sizes of its batches. Two more models are asked:
one with a tensor of every dtype, in several shapes, which must come back as they are, and one whose rows mix, which
must see its requests one by one.

    python -m benchmarks.serving.triton_proof ENVIRONMENT --out benchmarks/serving/triton.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser

from benchmarks.serving.exchanges import make_exchanges
from benchmarks.serving.load_client import on_loop, run_clients
from benchmarks.serving.models import write_model
from l0runtime.serving.datatypes import DATATYPES
from l0runtime.serving.triton import export_triton

HEADER = '<ir_version: 8, opset_import: ["": 17]>'
MIXING = f"{HEADER} g (float[N,2] x) => (float[N,2] y) {{ t = ReduceSum <keepdims = 1> (x) y = Add (x, t) }}"
# every dtype that Triton has a name for and its python backend can hold, with one shape each
SHAPES = {
    "bool": "N",
    "int8": "N,2",
    "int16": "N,1",
    "int32": "N,L",
    "int64": "N",
    "uint8": "N,2,2",
    "uint16": "N,1,3",
    "uint32": "N,4",
    "uint64": "N",
    "float16": "N,3",
    "float": "N,L,2",
    "double": "N,1,2,1",
}
ADVICE = "make it with: python -m venv ENVIRONMENT && ENVIRONMENT/bin/pip install nvidia-pytriton 'numpy<2' onnxruntime"


class TritonAbsentError(Exception):
    """The environment holds no tritonserver that runs here."""


def prove(environment: Path, folder: Path, *, clients: int = 32, seconds: float = 5.0) -> dict[str, Any]:
    """Export, serve, ask, and read the statistics.

    Args:
        environment: a virtual environment with nvidia-pytriton and onnxruntime.
        folder: for the repository and the server's log.
    Returns:
        counts of answers, and how many runs there were of each batch size.
    Raises:
        TritonAbsentError: no tritonserver there.
    """
    model = write_model(folder / "model.onnx")
    written = export_triton(model, folder / "repository", backend="python", device="cpu", threads=1)
    same, mixing = folder / "same.onnx", folder / "mixing.onnx"
    onnx.save(onnx.parser.parse_model(_every_dtype()), same)
    onnx.save(onnx.parser.parse_model(MIXING), mixing)
    for other in (same, mixing):
        export_triton(other, folder / "repository", backend="python", device="cpu", threads=1)
    port = _free_port()
    server = _start(environment, folder, port)
    try:
        _wait_until_ready(server, port, folder)
        exchanges = make_exchanges(model, "binary", clients)
        outcome = on_loop(run_clients("127.0.0.1", port, exchanges, seconds=seconds))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/model/stats", timeout=10) as answer:
            statistics = json.load(answer)["model_stats"][0]
        dtypes = _ask_every_dtype(port)
        mixed = _ask_mixing(port)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2", timeout=10) as answer:
            version = json.load(answer)["version"]
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
    return {
        "tritonserver": version,
        "clients": clients,
        "max_batch_size": written.max_batch,
        "answered": outcome.answered,
        "wrong": outcome.wrong,
        "lost": outcome.lost,
        "first_wrong": outcome.first_wrong,
        "requests_counted": int(statistics["inference_count"]),
        "runs_counted": int(statistics["execution_count"]),
        "dtypes_given_back_unchanged": dtypes,
        "requests_of_mixing_rows_answered_one_by_one": mixed,
        "runs_by_batch_size": {
            str(entry["batch_size"]): int(entry["compute_infer"]["count"]) for entry in statistics["batch_stats"]
        },
    }


def _every_dtype() -> str:
    """A model that gives back all it takes."""
    pairs = list(enumerate(SHAPES.items()))
    inputs = ", ".join(f"{name}[{shape}] x{number}" for number, (name, shape) in pairs)
    outputs = ", ".join(f"{name}[{shape}] y{number}" for number, (name, shape) in pairs)
    nodes = " ".join(f"y{number} = Identity (x{number})" for number, _ in pairs)
    return f"{HEADER} same ({inputs}) => ({outputs}) {{ {nodes} }}"


def _ask_every_dtype(port: int, rows: int = 3) -> list[str]:
    """Which dtypes came back as they were sent."""
    generator = np.random.default_rng(0)
    sent: list[tuple[str, list[int], bytes]] = []
    for name, shape in SHAPES.items():
        dtype = np.dtype({"float": "float32", "double": "float64"}.get(name, name))
        # Triton has no tensor without a dimension besides the rows: [N] is [N, 1] to its clients
        sizes = [rows, *(2 if size == "L" else int(size) for size in shape.split(",")[1:] or ["1"])]
        array = (generator.standard_normal(sizes) * 50).astype(np.int8).astype(dtype)
        sent.append((DATATYPES[dtype.name], sizes, array.tobytes()))
    inputs = [
        {"name": f"x{number}", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(values)}}
        for number, (datatype, shape, values) in enumerate(sent)
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    found, body = _post(port, "same", head, b"".join(values for _, _, values in sent))
    equal = []
    at = 0
    for output in found["outputs"]:
        datatype, shape, values = sent[int(output["name"][1:])]
        size = output["parameters"]["binary_data_size"]
        if (output["datatype"], output["shape"], body[at : at + size]) == (datatype, shape, values):
            equal.append(datatype)
        at += size
    return equal


def _ask_mixing(port: int, requests: int = 24) -> int:
    """How many of these requests, all at once, got the answer that they would get alone."""

    def ask(number: int) -> bool:
        x = np.arange(4, dtype=np.float32).reshape(2, 2) + number
        tensor = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": x.reshape(-1).tolist()}
        found, _ = _post(port, "mixing", json.dumps({"inputs": [tensor]}).encode())
        return bool(np.array_equal(np.array(found["outputs"][0]["data"]).reshape(2, 2), x + x.sum()))

    with ThreadPoolExecutor(requests) as pool:
        return sum(pool.map(ask, range(requests)))


def _post(port: int, model: str, head: bytes, values: bytes = b"") -> tuple[Any, bytes]:
    """The JSON of an answer, and the bytes after it."""
    headers = {"Inference-Header-Content-Length": str(len(head))} if values else {}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/models/{model}/infer", head + values, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            body = answer.read()
            length = int(answer.headers.get("Inference-Header-Content-Length", len(body)))
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{model}: {error.code} {error.read().decode(errors='replace')}") from error
    return json.loads(body[:length]), body[length:]


def _start(environment: Path, folder: Path, port: int) -> subprocess.Popen[bytes]:
    packages = next(iter(environment.glob("lib/python3*/site-packages")), environment)
    root = packages / "pytriton" / "tritonserver"
    binary = root / "bin" / "tritonserver"
    python = environment / "bin" / "python"
    if not binary.is_file() or not python.is_file():
        raise TritonAbsentError(f"{environment}: has no tritonserver; {ADVICE}")
    # The stub that runs Python models lies elsewhere than the server looks for it, one for each version of Python.
    backends = folder / "backends"
    shutil.copytree(root / "backends" / "python", backends / "python")
    version = packages.parent.name.removeprefix("python")
    shutil.copy(root / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
    ask = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"
    library = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    variables = dict(os.environ)
    variables["LD_LIBRARY_PATH"] = f"{library}:{packages / 'nvidia_pytriton.libs'}"
    variables["PATH"] = f"{environment / 'bin'}:{variables['PATH']}"
    variables["PYTHONPATH"] = str(packages)
    command = [
        str(binary),
        f"--model-repository={folder / 'repository'}",
        f"--backend-directory={backends}",
        "--http-address=127.0.0.1",
        f"--http-port={port}",
        "--allow-grpc=false",
        "--allow-metrics=false",
    ]
    with (folder / "tritonserver.log").open("wb") as log:
        return subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT)


def _wait_until_ready(server: subprocess.Popen[bytes], port: int, folder: Path, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            log = (folder / "tritonserver.log").read_text(errors="replace")
            raise TritonAbsentError(f"tritonserver ended with {server.returncode}: {log[-1500:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise TritonAbsentError(f"tritonserver was not ready after {seconds:g} seconds.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = prove(arguments.environment, Path(folder))
        except TritonAbsentError as error:
            print(error, file=sys.stderr)
            return 1
    result["python"] = sysconfig.get_python_version()
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    merged = any(int(size) > 1 and count for size, count in result["runs_by_batch_size"].items())
    others = (
        len(result["dtypes_given_back_unchanged"]) == len(SHAPES)
        and result["requests_of_mixing_rows_answered_one_by_one"] == 24
    )
    return 0 if result["answered"] and not result["wrong"] and not result["lost"] and merged and others else 1


if __name__ == "__main__":
    sys.exit(main())
