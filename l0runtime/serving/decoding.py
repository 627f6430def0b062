"""How is a REST inference request read: JSON, with or without binary tensors after it?

The binary tensor data extension: the body starts with JSON of `Inference-Header-Content-Length` bytes; an input with
the parameter `binary_data_size` takes that many of the bytes that follow, in the order of the inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l0runtime.serving.failures import malformed
from l0runtime.serving.json_values import array_from_json, may_hold_booleans, parse_json
from l0runtime.serving.request import (
    InferRequest,
    Signature,
    WantedOutput,
    check_request_parameters,
    check_tensor_parameters,
    element_count,
    from_bytes,
    shown,
    wanted_output,
)
from l0runtime.session.arrays import Array

_NOTHING: Mapping[str, object] = {}


def decode_request(body: bytes, json_length: int | None, signature: Signature) -> InferRequest:
    """The request in a body.

    Args:
        body: whole.
        json_length: of the JSON at its start; None if there is nothing else.
    Raises:
        RequestError: 400 with the reason.
    """
    if json_length is None or json_length == len(body):
        text: bytes | memoryview = body
        binary_at = len(body)
    else:
        if not 0 < json_length < len(body):
            raise malformed(f"Inference-Header-Content-Length is {json_length}, the body has {len(body)} bytes.")
        text = memoryview(body)[:json_length]
        binary_at = json_length
    document = parse_json(text)
    if not isinstance(document, dict):
        raise malformed(f"the body is {shown(document)}, expected a JSON object with 'inputs'.")
    request_id = document.get("id")
    if request_id is None:  # as good as absent, as for 'parameters' and 'outputs'
        request_id = ""
    if not isinstance(request_id, str) or not _is_text(request_id):
        raise malformed(f"'id' is {shown(request_id)}, expected text.")
    parameters = _parameters("the request", document)
    timeout_s = check_request_parameters(parameters) if parameters else None
    feed = _inputs(document.get("inputs"), body, binary_at, signature, may_hold_booleans(text))
    everything_binary = _flag(parameters, "binary_data_output", False)
    outputs = _outputs(document.get("outputs"), everything_binary, signature)
    return InferRequest(request_id, feed, outputs, timeout_s)


def _inputs(
    entries: object, body: bytes, binary_at: int, signature: Signature, may_hold_booleans: bool
) -> dict[str, Array]:
    if not isinstance(entries, list):
        raise malformed(f"'inputs' is {shown(entries)}, expected a list of tensors.")
    feed: dict[str, Array] = {}
    offset = binary_at
    for entry in entries:
        if not isinstance(entry, dict):
            raise malformed(f"'inputs' holds {shown(entry)}, expected a tensor: name, shape, datatype and data.")
        name = entry.get("name")
        dtype = signature.dtype_of(name, entry.get("datatype"))
        assert isinstance(name, str)
        if name in feed:
            raise malformed(f"input '{name}' is given twice.")
        shape = entry.get("shape")
        count = element_count(name, shape)
        assert isinstance(shape, list)
        parameters = _parameters(f"input '{name}'", entry)
        if parameters:
            check_tensor_parameters("input", name, parameters)
        if "binary_data_size" not in parameters:
            if "data" not in entry:
                raise malformed(f"input '{name}': has neither 'data' nor the parameter 'binary_data_size'.")
            feed[name] = array_from_json(name, entry["data"], dtype, shape, count, may_hold_booleans=may_hold_booleans)
            continue
        if "data" in entry:
            raise malformed(f"input '{name}': has both 'data' and the parameter 'binary_data_size'.")
        size = parameters["binary_data_size"]
        if type(size) is not int or size != count * dtype.itemsize:
            raise malformed(
                f"input '{name}': binary_data_size is {shown(size)}; shape {shown(shape)} of {entry['datatype']} takes "
                f"{count * dtype.itemsize} bytes."
            )
        if offset + size > len(body):
            raise malformed(
                f"input '{name}': binary_data_size is {size}, {len(body) - offset} bytes of binary data are left. Is "
                "Inference-Header-Content-Length set?"
            )
        feed[name] = from_bytes(name, body, dtype, shape, count, offset)
        offset += size
    if offset != len(body):
        raise malformed(f"{len(body) - offset} bytes of binary data belong to no input.")
    return feed


def _outputs(entries: object, everything_binary: bool, signature: Signature) -> list[WantedOutput]:
    if entries is None or entries == []:
        return [WantedOutput(index, everything_binary) for index in range(len(signature.outputs))]
    if not isinstance(entries, list):
        raise malformed(f"'outputs' is {shown(entries)}, expected a list of names.")
    wanted: list[WantedOutput] = []
    seen: set[int] = set()
    for entry in entries:
        if not isinstance(entry, dict):
            raise malformed(f"'outputs' holds {shown(entry)}, expected an object with 'name'.")
        parameters = _parameters("an output", entry)
        if parameters:
            check_tensor_parameters("output", entry.get("name"), parameters)
        binary = _flag(parameters, "binary_data", everything_binary)
        wanted.append(wanted_output(signature, entry.get("name"), binary, seen))
    return wanted


def _parameters(where: str, entry: dict[str, Any]) -> Mapping[str, object]:
    parameters = entry.get("parameters")
    if parameters is None:
        return _NOTHING
    if not isinstance(parameters, dict):
        raise malformed(f"{where}: 'parameters' is {shown(parameters)}, expected an object.")
    return parameters


def _is_text(value: str) -> bool:
    """Whether it can be written again: half of a surrogate pair is JSON, but no text."""
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def _flag(parameters: Mapping[str, object], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise malformed(f"parameter '{name}' is {shown(value)}, expected true or false.")
    return value
