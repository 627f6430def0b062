"""What does one inference request ask for, whichever protocol it came by?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from l0runtime.serving.datatypes import DATATYPES
from l0runtime.serving.failures import malformed
from l0runtime.session.arrays import Array
from l0runtime.session.specs import TensorSpec

# Parameters that would change what is computed or where it goes. The others (priorities and the like) are hints.
REFUSED_REQUEST = frozenset({"sequence_id", "sequence_start", "sequence_end"})
REFUSED_TENSOR = frozenset({"shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"})


class Signature:
    """The tensors of a model, prepared for requests to be checked against them."""

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.dtypes: dict[str, tuple[str, np.dtype[Any]]] = {
            spec.name: (DATATYPES[spec.dtype], spec.numpy_dtype) for spec in inputs
        }
        self.output_index = {spec.name: index for index, spec in enumerate(outputs)}

    def dtype_of(self, name: object, datatype: object) -> np.dtype[Any]:
        """The NumPy dtype of an input that a request names.

        Raises:
            RequestError: no such input, or another datatype than the model's.
        """
        known = self.dtypes.get(name) if isinstance(name, str) else None
        if known is None:
            takes = ", ".join(self.dtypes) or "no input"
            raise malformed(f"input {shown(name)} is not one of the model's inputs: {takes}.")
        if datatype != known[0]:
            raise malformed(f"input '{name}': found datatype {shown(datatype)}, expected {known[0]}.")
        return known[1]


@dataclass(slots=True)
class WantedOutput:
    """An output that is asked for.

    Attributes:
        index: among the model's outputs.
        binary: whether its values come after the JSON; of no meaning to gRPC.
    """

    index: int
    binary: bool


@dataclass(slots=True)
class InferRequest:
    """One request, decoded.

    Attributes:
        id: repeated in the answer; empty for none.
        feed: input name to array; names, shapes and dtypes are the session's to check.
        outputs: in the order of the answer.
        timeout_s: how long the client is ready to wait; None where it does not say.
    """

    id: str
    feed: dict[str, Array]
    outputs: list[WantedOutput]
    timeout_s: float | None


def shown(value: object) -> str:
    """A client's value in an error message, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def element_count(name: object, shape: object) -> int:
    """How many elements a shape has.

    Raises:
        RequestError: it is no list of whole numbers of at least 0.
    """
    if not isinstance(shape, list):
        raise malformed(f"input {shown(name)}: 'shape' is {shown(shape)}, expected a list of whole numbers.")
    for size in shape:
        if type(size) is not int or not 0 <= size < 2**63:
            raise malformed(f"input '{name}': shape {shown(shape)} holds {shown(size)}, expected sizes of at least 0.")
    return math.prod(shape)


def from_bytes(name: str, data: Any, dtype: np.dtype[Any], shape: list[int], count: int, offset: int = 0) -> Array:
    """A tensor over `count` values of a buffer, without a copy where the values are aligned.

    Args:
        data: little-endian values, row by row; the caller has checked that they are there.
        shape: with product `count`.
    Raises:
        RequestError: a boolean that is neither 0 nor 1, or a shape beyond what an array can have.
    """
    array: Array = np.frombuffer(data, dtype, count, offset) if count else np.empty(0, dtype)
    if dtype == np.bool_ and count and int(array.view(np.uint8).max()) > 1:
        raise malformed(f"input '{name}': holds a byte above 1; a BOOL is 0 or 1.")
    if not array.flags.aligned:  # kernels may load whole vectors
        array = array.copy()
    return reshaped(name, array, shape)


def reshaped(name: str, array: Array, shape: list[int]) -> Array:
    """The values in a shape of as many elements.

    Raises:
        RequestError: more dimensions, or larger ones, than an array can have.
    """
    try:
        return array.reshape(shape)
    except ValueError as error:
        raise malformed(f"input '{name}': shape {shown(shape)} is beyond what an array can have.") from error


def check_request_parameters(parameters: Mapping[str, object]) -> float | None:
    """The client's time limit in seconds, from Triton's `timeout` in microseconds; None where there is none.

    Raises:
        RequestError: a parameter asks for what is not served.
    """
    for name in REFUSED_REQUEST & parameters.keys():
        raise malformed(f"parameter '{name}': sequences are not served; every request stands for itself.")
    timeout = parameters.get("timeout", 0)
    if type(timeout) is not int or timeout < 0:
        raise malformed(f"parameter 'timeout' is {shown(timeout)}, expected microseconds as a whole number.")
    return timeout / 1e6 if timeout else None


def check_tensor_parameters(kind: str, name: object, parameters: Mapping[str, object]) -> None:
    """Refuse parameters of a tensor that ask for what is not served.

    Raises:
        RequestError: shared memory, or classification.
    """
    for found in REFUSED_TENSOR & parameters.keys():
        raise malformed(f"{kind} {shown(name)}: parameter '{found}': shared memory is not served; send the values.")
    if "classification" in parameters:
        raise malformed(f"{kind} {shown(name)}: parameter 'classification' is not served; sort the scores yourself.")


def wanted_output(signature: Signature, name: object, binary: bool, seen: set[int]) -> WantedOutput:
    """An output by its name.

    Args:
        seen: indices asked for before in this request; extended here.
    Raises:
        RequestError: no such output, or asked for twice.
    """
    index = signature.output_index.get(name) if isinstance(name, str) else None
    if index is None:
        raise malformed(f"output {shown(name)} is not one of the model's outputs: {', '.join(signature.output_index)}.")
    if index in seen:
        raise malformed(f"output '{name}' is asked for twice.")
    seen.add(index)
    return WantedOutput(index, binary)
