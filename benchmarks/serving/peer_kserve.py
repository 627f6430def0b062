"""KServe's Python SDK serving the benchmark's model; runs in an environment that holds `kserve` and `onnxruntime`.

    python peer_kserve.py MODEL.onnx PORT

The model class does the least that the SDK allows: arrays from the request, onnxruntime, arrays into the answer. What
costs time for each request and can be switched off (latency log, access log, gRPC) is off.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import kserve
import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse


class OnnxModel(kserve.Model):  # type: ignore[misc]
    """One input x, one output y."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__(name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.ready = True

    async def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> InferResponse:
        x = payload.inputs[0].as_numpy()
        y = self._session.run(["y"], {"x": x})[0]
        output = InferOutput(name="y", shape=list(y.shape), datatype="FP32")
        asked = payload.request_outputs or []
        output.set_data_from_numpy(y, binary_data=payload.use_binary_outputs or any(one.binary_data for one in asked))
        return InferResponse(
            response_id=payload.id,
            model_name=self.name,
            infer_outputs=[output],
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


if __name__ == "__main__":
    logging.disable(logging.INFO)
    kserve.ModelServer(
        http_port=int(sys.argv[2]), enable_grpc=False, enable_latency_logging=False, workers=1, access_log_format=None
    ).start([OnnxModel("model", sys.argv[1])])
