"""Which requests does each server get, and what is a right answer? Random images, and onnxruntime's own outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import orjson

from benchmarks.serving.load_client import Exchange

# float32 sums in another order where requests share a run
TOLERANCE = 1e-5
DIFFERENT = 4  # inputs for each client, so that an answer to another request is noticed


def make_exchanges(model: Path, protocol: str, clients: int) -> list[list[Exchange]]:
    """For each client its requests.

    Args:
        model: one input x [N, width], one output y.
        protocol: "binary" or "json" (Open Inference Protocol), or "litserve".
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    width = session.get_inputs()[0].shape[1]
    found = []
    for client in range(clients):
        own = []
        for number in range(DIFFERENT):
            x = np.random.default_rng([client, number]).standard_normal((1, width)).astype(np.float32)
            own.append(_exchange(protocol, x, session.run(["y"], {"x": x})[0]))
        found.append(own)
    return found


def _exchange(protocol: str, x: np.ndarray, y: np.ndarray) -> Exchange:
    values = np.char.mod("%.9g", x.reshape(-1)).tolist()  # nine digits give a float32 back exactly
    data = f"[{','.join(values)}]".encode()
    expected = y.reshape(-1)
    scale = float(np.abs(expected).max())
    head = b""
    path = "/v2/models/model/infer"
    if protocol == "litserve":
        path = "/predict"
        body = b'{"data":' + data + b"}"
    else:
        tensor = b'{"name":"x","shape":[1,%d],"datatype":"FP32",' % x.shape[1]
        if protocol == "json":
            body = b'{"id":"1","inputs":[' + tensor + b'"data":' + data + b"}]}"
        else:
            body = b'{"id":"1","inputs":[' + tensor + b'"parameters":{"binary_data_size":%d}}],' % x.nbytes
            body += b'"outputs":[{"name":"y","parameters":{"binary_data":true}}]}'
            head = b"Inference-Header-Content-Length: %d\r\n" % len(body)
            body += x.tobytes()
    kind = b"octet-stream" if head else b"json"
    request = (
        b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/%s\r\n" % (path.encode(), kind)
        + head
        + b"Content-Length: %d\r\n\r\n" % len(body)
        + body
    )

    def check(head: bytes, body: bytes) -> bool:
        if not head.startswith(b"HTTP/1.1 200"):
            return False
        if protocol == "binary":
            found = np.frombuffer(body[-expected.nbytes :], np.float32)
        elif protocol == "json":
            found = np.array(orjson.loads(body)["outputs"][0]["data"])
        else:
            found = np.array(orjson.loads(body)["data"])
        return found.shape == expected.shape and float(np.abs(found - expected).max()) <= TOLERANCE * scale

    return Exchange(request, check)
