"""Which load does a server bear over gRPC? Closed-loop clients, each with a channel of its own, each answer checked."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc
import numpy as np
import onnxruntime

from benchmarks.serving.exchanges import TOLERANCE
from benchmarks.serving.load_client import Outcome
from l0runtime.serving.grpc_messages import SERVICE, message_classes

# UNAVAILABLE with one of these says that the call was not run: no connection could be made, or the server refused it
_NOT_RUN = ("failed to connect to all addresses", "Connection refused", "the server is shutting down.")


async def run_grpc_clients(address: str, models: list[Path], clients: int, *, seconds: float) -> Outcome:
    """Run clients until the time is up or the server refuses them.

    Args:
        models: the files of odd and of even versions; the answer must be that of the version it names.
    """
    messages = message_classes()
    outcome = Outcome()
    started = time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(str(m), options, providers=["CPUExecutionProvider"]) for m in models]

    async def client(number: int) -> None:
        x = np.random.default_rng(number).standard_normal((1, 784)).astype(np.float32)
        expected = [session.run(["y"], {"x": x})[0] for session in sessions]
        request = messages["ModelInferRequest"](
            model_name="model",
            inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 784]}],
            raw_input_contents=[x.tobytes()],
        ).SerializeToString()
        # a channel's own connection: channels of equal options would share one
        async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            while time.perf_counter() - started < seconds:
                sent = time.perf_counter()
                try:
                    answer = messages["ModelInferResponse"].FromString(await call(request, timeout=30))
                except grpc.aio.AioRpcError as error:
                    refused = error.code() == grpc.StatusCode.UNAVAILABLE and any(
                        part in (error.details() or "") for part in _NOT_RUN
                    )
                    outcome.refused += refused
                    outcome.lost += not refused
                    outcome.first_wrong = outcome.first_wrong or ("" if refused else repr(error))
                    return
                outcome.answered += 1
                outcome.latencies_ms.append((time.perf_counter() - sent) * 1e3)
                y = np.frombuffer(answer.raw_output_contents[0], np.float32)
                right = expected[(int(answer.model_version) - 1) % len(expected)].reshape(-1)
                if y.shape != right.shape or np.abs(y - right).max() > TOLERANCE * np.abs(right).max():
                    outcome.wrong += 1
                    outcome.first_wrong = outcome.first_wrong or f"version {answer.model_version}: {y.tolist()}"

    await asyncio.gather(*(client(number) for number in range(clients)))
    outcome.seconds = time.perf_counter() - started
    return outcome
