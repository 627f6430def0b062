"""How does a compact model answer inside a FastAPI application? `Session` and `MicroBatcher`, awaited.

    pip install 'l0runtime[serve]' fastapi
    L0RUNTIME_MODEL=compact.onnx uvicorn --app-dir examples fastapi_app:app

    curl -X POST localhost:8000/predict -H 'Content-Type: application/json' -d '{"rows": [[0.1, 0.2, 0.3]]}'

The model must have one input and independent rows. Requests that arrive together share a run.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

import l0runtime
from l0runtime.errors import DeadlineError, InputError, L0RuntimeError, QueueFullError
from l0runtime.session import MicroBatcher

STATUS: dict[type[L0RuntimeError], int] = {InputError: 400, QueueFullError: 429, DeadlineError: 504}


class Rows(BaseModel):
    """Inputs, one list for each row."""

    rows: list[list[float]]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the model before the first request, and finish the last ones before the end."""
    device = os.environ.get("L0RUNTIME_DEVICE", "cuda")
    with (
        l0runtime.load(os.environ["L0RUNTIME_MODEL"], device=device, spin=False) as session,
        MicroBatcher(session, max_batch=32, max_queue=256) as batcher,
    ):
        app.state.session, app.state.batcher = session, batcher
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
async def predict(body: Rows, request: Request) -> dict[str, list[object]]:
    """The model's outputs for the rows, by name."""
    session, batcher = request.app.state.session, request.app.state.batcher
    (spec,) = session.inputs
    try:
        array = np.array(body.rows, spec.numpy_dtype)
    except ValueError as error:
        raise InputError(f"the rows differ in length ({error}).") from error
    # the batcher's future belongs to a thread; wrapped, it can be awaited
    outputs = await asyncio.wrap_future(batcher.submit({spec.name: array}, timeout_ms=1000))
    return {name: values.tolist() for name, values in outputs.items()}


@app.exception_handler(L0RuntimeError)
async def failed(request: Request, error: L0RuntimeError) -> JSONResponse:
    """The status that tells a client's mistake from an overload; the message says what to do."""
    return JSONResponse({"error": str(error)}, STATUS.get(type(error), 500))
