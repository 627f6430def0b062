"""LitServe serving the benchmark's model; runs in an environment that holds `litserve` and `onnxruntime`.

python peer_litserve.py MODEL.onnx PORT [BATCH [BATCH_TIMEOUT_S [FAST_QUEUE]]]
"""

from __future__ import annotations

import sys
from typing import Any

import litserve
import numpy as np
import onnxruntime


class OnnxApi(litserve.LitAPI):  # type: ignore[misc]
    """One input x, one output y, as {"data": [...]} both ways."""

    def setup(self, device: Any) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])

    # LitServe reads this annotation at run time, and takes a text for one of a query parameter: none, so
    def decode_request(self, request):  # type: ignore[no-untyped-def]
        return np.array(request["data"], np.float32)

    def batch(self, inputs: list[Any]) -> Any:
        return np.stack(inputs)

    def predict(self, x: Any) -> Any:
        return self._session.run(["y"], {"x": x if x.ndim == 2 else x[None]})[0]

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"data": output.reshape(-1).tolist()}


if __name__ == "__main__":
    batch = int(sys.argv[3]) if len(sys.argv) > 3 else 32
    timeout_s = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0
    api = OnnxApi(max_batch_size=batch, batch_timeout=timeout_s)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue="fast" in sys.argv[5:])
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="error")
