"""How is the answer to a REST inference request written?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from l0runtime.serving.datatypes import DATATYPES
from l0runtime.serving.json_values import dumps_with_non_finite, is_finite, json_values
from l0runtime.serving.request import InferRequest, Signature
from l0runtime.session.arrays import Array


def encode_response(
    model: str, version: str, request: InferRequest, signature: Signature, results: Sequence[Array]
) -> tuple[bytes, int | None]:
    """The body of an answer.

    Args:
        results: all outputs of the model, in its order.
    Returns:
        the body, and the length of the JSON at its start where binary values follow, else None.
    """
    outputs: list[dict[str, Any]] = []
    binary: list[bytes | memoryview] = []
    in_json: list[Array] = []
    for wanted in request.outputs:
        spec, array = signature.outputs[wanted.index], results[wanted.index]
        entry: dict[str, Any] = {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": array.shape}
        if wanted.binary:
            entry["parameters"] = {"binary_data_size": array.nbytes}
            binary.append(bytes_of(array))
        else:
            in_json.append(array)
            entry["data"] = json_values(array)
        outputs.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": outputs}
    if request.id:
        document["id"] = request.id
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    # orjson writes NaN and infinities as null, and nothing else here but a name could hold that word
    if b"null" in head and not all(map(is_finite, in_json)):
        head = dumps_with_non_finite(document)
    if not binary:
        return head, None
    return b"".join([head, *binary]), len(head)


def bytes_of(array: Array) -> bytes:
    """The values, little-endian, row by row."""
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.ascontiguousarray(array).tobytes()
