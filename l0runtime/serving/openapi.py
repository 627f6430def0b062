"""What does the OpenAPI page say? The addresses of this very server's models, with their tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from l0runtime.machine import installed_version
from l0runtime.serving.datatypes import DATATYPES
from l0runtime.serving.models import ServedModel
from l0runtime.serving.request import REFUSED_REQUEST, REFUSED_TENSOR
from l0runtime.session.specs import TensorSpec

_EXAMPLE_VALUES = 1024  # a longer example would bury the page

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
    "additionalProperties": False,
}


def openapi_document(models: Sequence[ServedModel], *, body_limit: int) -> dict[str, Any]:
    """An OpenAPI 3.1 document.

    Args:
        models: with the revision in use.
        body_limit: in bytes, for the description.
    """
    paths: dict[str, Any] = {
        "/v2/health/live": _page("Whether the process answers.", {"live": {"type": "boolean"}}),
        "/v2/health/ready": _page("Whether requests should be sent here.", {"ready": {"type": "boolean"}}, busy=True),
        "/v2": _page(
            "Name, version and extensions of the server.",
            {
                "name": {"type": "string"},
                "version": {"type": "string"},
                "extensions": {"type": "array", "items": {"type": "string"}},
            },
        ),
        "/metrics": {"get": {"summary": "Prometheus metrics.", "responses": {"200": _text(), **_refusals("401")}}},
    }
    for model in models:
        root = f"/v2/models/{model.name}"
        metadata = {
            "name": {"const": model.name},
            "versions": {"type": "array", "items": {"type": "string"}},
            "platform": {"type": "string"},
            "inputs": {"type": "array", "items": _METADATA_TENSOR},
            "outputs": {"type": "array", "items": _METADATA_TENSOR},
        }
        ready = {"name": {"const": model.name}, "ready": {"type": "boolean"}}
        paths[root] = _page("The model's tensors.", metadata)
        paths[f"{root}/ready"] = _page("Whether the model answers.", ready, busy=True)
        paths[f"{root}/infer"] = {"post": _inference(model, body_limit)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "l0runtime: Open Inference Protocol version 2",
            "version": installed_version("l0runtime") or "unknown",
        },
        "paths": paths,
    }


_METADATA_TENSOR = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"enum": list(DATATYPES.values())},
        "shape": {"type": "array", "items": {"type": "integer"}},
    },
}


def _page(summary: str, properties: dict[str, Any], *, busy: bool = False) -> dict[str, Any]:
    body = {"type": "object", "required": list(properties), "properties": properties}
    content = {"content": {"application/json": {"schema": body}}}
    responses = {"200": {"description": "Yes, or the facts.", **content}, **_refusals("401")}
    if busy:
        responses["503"] = {"description": "Not now.", **content}
    return {"get": {"summary": summary, "responses": responses}}


def _text() -> dict[str, Any]:
    return {"description": "Text.", "content": {"text/plain": {"schema": {"type": "string"}}}}


def _refusals(*statuses: str) -> dict[str, Any]:
    meaning = {
        "400": "The request is malformed, or does not fit the model; the reason is given.",
        "401": "No token, or a wrong one.",
        "408": "The request did not arrive in time.",
        "413": "The body is larger than the limit.",
        "415": "The body is compressed.",
        "429": "Too many requests wait; try again.",
        "503": "Shutting down, overloaded or out of memory.",
        "504": "Not answered within the deadline.",
    }
    schema = {"content": {"application/json": {"schema": _ERROR}}}
    return {status: {"description": meaning[status], **schema} for status in statuses}


def _inference(model: ServedModel, body_limit: int) -> dict[str, Any]:
    signature = model.revision.signature
    inputs = [_request_tensor(spec) for spec in signature.inputs]
    request = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": ["string", "null"]},
            "inputs": {
                "type": "array",
                "items": {"oneOf": inputs} if len(inputs) != 1 else inputs[0],
                "minItems": len(inputs),
                "maxItems": len(inputs),
            },
            "outputs": {
                "type": ["array", "null"],
                "description": "All, if there are none; each at most once.",
                "maxItems": len(signature.outputs),
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"enum": [spec.name for spec in signature.outputs]},
                        "parameters": _parameters(
                            {"binary_data": {"type": "boolean"}}, REFUSED_TENSOR | {"classification"}
                        ),
                    },
                },
            },
            "parameters": _parameters(
                {
                    "binary_data_output": {"type": "boolean"},
                    "timeout": {"type": "integer", "minimum": 0, "description": "microseconds"},
                },
                REFUSED_REQUEST,
            ),
        },
    }
    answer = {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"const": model.name},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": _METADATA_TENSOR},
        },
    }
    binary = {"schema": {"type": "string", "format": "binary"}}
    content: dict[str, Any] = {"schema": request}
    example = _example(signature.inputs)
    if example is not None:
        content["example"] = example
    return {
        "summary": f"Run the model on its inputs; the body has at most {body_limit} bytes.",
        "description": "Values may also follow the JSON as bytes: see the binary tensor data extension of the Open "
        "Inference Protocol. Whatever the schema cannot say must hold too: 'data' has as many values as its shape, and "
        "dimensions of one name are equal.",
        "requestBody": {"required": True, "content": {"application/json": content}},
        "responses": {
            "200": {
                "description": "The outputs.",
                "content": {"application/json": {"schema": answer}, "application/octet-stream": binary},
            },
            **_refusals("400", "401", "408", "413", "415", "429", "503", "504"),
        },
    }


def _request_tensor(spec: TensorSpec) -> dict[str, Any]:
    data: dict[str, Any] = {
        "type": "array",
        "items": _value(spec),
        "description": "Row by row; the lists may also be nested as the shape is.",
    }
    if all(isinstance(dim, int) for dim in spec.shape):
        data["minItems"] = data["maxItems"] = math.prod(dim for dim in spec.shape if isinstance(dim, int))
    shape = [{"const": dim} if isinstance(dim, int) else {"type": "integer", "minimum": 0} for dim in spec.shape]
    return {
        "type": "object",
        "required": ["name", "shape", "datatype", "data"],
        "properties": {
            "name": {"const": spec.name},
            "datatype": {"const": DATATYPES[spec.dtype]},
            "shape": {
                "type": "array",
                "prefixItems": shape,
                "items": {"type": "integer"},
                "minItems": len(shape),
                "maxItems": len(shape),
            },
            "data": data,
            "parameters": _parameters({}, REFUSED_TENSOR | {"binary_data_size", "classification"}),
        },
    }


def _value(spec: TensorSpec) -> dict[str, Any]:
    """A number that the dtype can hold."""
    dtype = spec.numpy_dtype
    if dtype.kind == "b":
        return {"type": "boolean"}
    if dtype.kind in "iu":
        return {"type": "integer", "minimum": int(np.iinfo(dtype).min), "maximum": int(np.iinfo(dtype).max)}
    if dtype == np.float64:
        return {"type": "number"}
    # where numbers begin to be rounded to infinity: half a step beyond the largest
    info = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    limit = float(info.max) + 2.0 ** (info.maxexp - 2 - info.nmant)
    return {"type": "number", "exclusiveMinimum": -limit, "exclusiveMaximum": limit}


def _parameters(known: dict[str, Any], refused: frozenset[str]) -> dict[str, Any]:
    """Parameters that are known, some that must not be there, and any others, which are hints."""
    return {"type": ["object", "null"], "properties": {**known, **dict.fromkeys(sorted(refused), False)}}


def _example(inputs: Sequence[TensorSpec]) -> dict[str, Any] | None:
    """A request of zeros, one row; None for large tensors."""
    tensors = []
    for spec in inputs:
        shape = [dim if isinstance(dim, int) else 1 for dim in spec.shape]
        if math.prod(shape) > _EXAMPLE_VALUES:
            return None
        zero = False if spec.numpy_dtype.kind == "b" else 0
        data = [zero] * math.prod(shape)
        tensors.append({"name": spec.name, "shape": shape, "datatype": DATATYPES[spec.dtype], "data": data})
    return {"inputs": tensors}
