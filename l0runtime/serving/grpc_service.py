"""How are gRPC requests answered?

Requests are parsed here and not by grpc, which would answer bytes that are no message with INTERNAL.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from l0runtime.serving.access import TokenCheck
from l0runtime.serving.datatypes import DATATYPES
from l0runtime.serving.encoding import bytes_of
from l0runtime.serving.failures import RequestError, as_failure, malformed
from l0runtime.serving.grpc_messages import SERVICE, message_classes
from l0runtime.serving.logs import EventLog
from l0runtime.serving.models import ModelRepository
from l0runtime.serving.options import ServeOptions
from l0runtime.serving.pages import server_metadata
from l0runtime.serving.request import (
    InferRequest,
    Signature,
    WantedOutput,
    check_request_parameters,
    check_tensor_parameters,
    element_count,
    from_bytes,
    reshaped,
    wanted_output,
)
from l0runtime.session.arrays import Array

# datatype: the field of InferTensorContents that carries it; FP16 and BF16 travel raw only
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
_OPEN_METHODS = frozenset({"ServerLive", "ServerReady"})  # probes carry no token


class GrpcService:
    """The handlers of `inference.GRPCInferenceService`.

    Attributes:
        refuses: answer every call for inference with UNAVAILABLE from now on.
    """

    def __init__(self, repository: ModelRepository, options: ServeOptions, log: EventLog) -> None:
        self._repository = repository
        self._token = TokenCheck(options.token)
        self._log, self._log_requests = log, options.log_requests
        self._messages = message_classes()
        self.refuses = False

    def handler(self) -> grpc.GenericRpcHandler:
        """What a grpc server takes."""
        methods: dict[str, Callable[[Any], Awaitable[Any]]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
        }
        handlers = {name: self._wrapped(name, method) for name, method in methods.items()}
        handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(self._model_infer)
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _wrapped(self, name: str, method: Callable[[Any], Awaitable[Any]]) -> Any:
        request_class = self._messages[f"{name}Request"]

        async def answer(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
            try:
                if name not in _OPEN_METHODS:
                    self._check_token(context)
                message = await method(_parsed(request_class, data))
                content: bytes = message.SerializeToString()
                return content
            except Exception as error:
                await _abort(context, as_failure(error))

        return grpc.unary_unary_rpc_method_handler(answer)

    def _check_token(self, context: grpc.aio.ServicerContext) -> None:
        if self._token.is_open:
            return
        found = next((value for key, value in context.invocation_metadata() or () if key == "authorization"), None)
        self._token.check(found.encode() if isinstance(found, str) else found)

    async def _server_live(self, request: Any) -> Any:
        return self._messages["ServerLiveResponse"](live=True)

    async def _server_ready(self, request: Any) -> Any:
        return self._messages["ServerReadyResponse"](ready=self._repository.is_ready)

    async def _model_ready(self, request: Any) -> Any:
        self._repository.find(request.name).check_version(request.version)
        return self._messages["ModelReadyResponse"](ready=self._repository.is_ready)

    async def _server_metadata(self, request: Any) -> Any:
        return self._messages["ServerMetadataResponse"](**server_metadata())

    async def _model_metadata(self, request: Any) -> Any:
        model = self._repository.find(request.name)
        model.check_version(request.version)
        return self._messages["ModelMetadataResponse"](**model.metadata())

    async def _model_infer(self, data: bytes, context: grpc.aio.ServicerContext) -> bytes:
        started = time.perf_counter()
        model = None
        status = 200
        failure: RequestError | None = None
        content = b""
        try:
            if self.refuses:
                raise RequestError(503, "the server is shutting down.")
            self._check_token(context)
            message = _parsed(self._messages["ModelInferRequest"], data)
            model = self._repository.find(message.model_name)
            model.check_version(message.model_version)
            request = decode_message(message, model.revision.signature)
            remaining = context.time_remaining()
            if remaining is not None:
                request.timeout_s = remaining if request.timeout_s is None else min(remaining, request.timeout_s)
            results, version = await model.infer(request)
            response = self._messages["ModelInferResponse"](model_name=model.name, model_version=version, id=request.id)
            raw = len(message.raw_input_contents) > 0 or not message.inputs
            encode_message(response, request, model.revision.signature, results, raw=raw)
            content = response.SerializeToString()
        except Exception as error:
            failure = as_failure(error)
            status = failure.status
            if status == 500:
                name = None if model is None else model.name
                self._log.error("request_failed", model=name, protocol="grpc", error=repr(error))
        if model is not None:
            seconds = time.perf_counter() - started
            model.metrics.answered("grpc", status, seconds)
            if self._log_requests:
                reason = {} if failure is None else {"reason": str(failure)}
                ms = round(seconds * 1e3, 3)
                self._log.info("request", model=model.name, protocol="grpc", status=status, ms=ms, **reason)
        if failure is not None:
            await _abort(context, failure)
        return content


def decode_message(message: Any, signature: Signature) -> InferRequest:
    """The request in a ModelInferRequest.

    Raises:
        RequestError: 400 with the reason.
    """
    parameters = _parameters(message.parameters)
    timeout_s = check_request_parameters(parameters) if parameters else None
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise malformed(f"raw_input_contents has {len(raw)} entries for {len(message.inputs)} inputs.")
    feed: dict[str, Array] = {}
    for position, tensor in enumerate(message.inputs):
        name = tensor.name
        dtype = signature.dtype_of(name, tensor.datatype)
        if name in feed:
            raise malformed(f"input '{name}' is given twice.")
        if tensor.parameters:
            check_tensor_parameters("input", name, _parameters(tensor.parameters))
        shape = list(tensor.shape)
        count = element_count(name, shape)
        if raw:
            if tensor.HasField("contents"):
                raise malformed(f"input '{name}': has both contents and raw_input_contents.")
            data = raw[position]
            if len(data) != count * dtype.itemsize:
                raise malformed(
                    f"input '{name}': raw contents have {len(data)} bytes; shape {shape} of {tensor.datatype} takes "
                    f"{count * dtype.itemsize}."
                )
            feed[name] = from_bytes(name, data, dtype, shape, count)
        else:
            feed[name] = _typed(name, tensor, dtype, shape, count)
    if not message.outputs:
        return InferRequest(message.id, feed, [WantedOutput(i, True) for i in range(len(signature.outputs))], timeout_s)
    seen: set[int] = set()
    outputs = []
    for output in message.outputs:
        if output.parameters:
            check_tensor_parameters("output", output.name, _parameters(output.parameters))
        outputs.append(wanted_output(signature, output.name, True, seen))
    return InferRequest(message.id, feed, outputs, timeout_s)


def encode_message(
    response: Any, request: InferRequest, signature: Signature, results: list[Array], *, raw: bool
) -> None:
    """Fill a ModelInferResponse: raw if the request was, or if a wanted datatype travels raw only."""
    chosen = [(signature.outputs[wanted.index], results[wanted.index]) for wanted in request.outputs]
    raw = raw or any(DATATYPES[spec.dtype] not in _CONTENTS for spec, _ in chosen)
    for spec, array in chosen:
        tensor = response.outputs.add(name=spec.name, datatype=DATATYPES[spec.dtype], shape=array.shape)
        if raw:
            response.raw_output_contents.append(bytes_of(array))
        else:
            getattr(tensor.contents, _CONTENTS[tensor.datatype]).extend(array.reshape(-1).tolist())


def _typed(name: str, tensor: Any, dtype: np.dtype[Any], shape: list[int], count: int) -> Array:
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise malformed(f"input '{name}': {tensor.datatype} has no typed contents; use raw_input_contents.")
    filled = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    if filled and filled != [field]:
        raise malformed(f"input '{name}': contents are in {', '.join(filled)}; {tensor.datatype} belongs in {field}.")
    values = getattr(tensor.contents, field)
    if len(values) != count:
        raise malformed(f"input '{name}': contents have {len(values)} values, shape {shape} has {count}.")
    try:
        # a list, since NumPy would wrap the integers of protobuf's own container around without a word
        return reshaped(name, np.array(list(values), dtype), shape)
    except OverflowError as error:
        raise malformed(f"input '{name}': contents hold a value beyond the range of {dtype.name}.") from error


def _parameters(entries: Any) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in entries.items():
        kind = value.WhichOneof("parameter_choice")
        found[name] = None if kind is None else getattr(value, kind)
    return found


def _parsed(message_class: Any, data: bytes) -> Any:
    try:
        return message_class.FromString(data)
    except DecodeError as error:
        raise malformed(f"the bytes are no {message_class.DESCRIPTOR.name}.") from error


async def _abort(context: grpc.aio.ServicerContext, failure: RequestError) -> NoReturn:
    await context.abort(grpc.StatusCode[failure.grpc_code], str(failure))
    raise AssertionError("abort raises")
