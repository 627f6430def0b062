"""How do JSON numbers become a tensor, exactly or not at all?

A JSON list may be flat or nested as the shape says. NumPy alone would take `[1.5]` for integers (as 1), `[true, 2]` for
numbers, and `[1e300]` for float32 (as infinity); here each is refused. Everything runs at the speed of C loops:
`struct.pack` refuses all of these but booleans, in half of NumPy's time; where a list may hold booleans, or has been
refused, one `set(map(type, ...))` tells which types it holds.
"""

from __future__ import annotations

import json
import math
import struct
from itertools import chain
from typing import Any

import numpy as np
import orjson

from l0runtime.serving.failures import malformed
from l0runtime.serving.request import reshaped, shown
from l0runtime.session.arrays import Array

_INTEGER = frozenset({int})
_NUMBER = frozenset({int, float})
_BOOL = frozenset({bool})
_LETTERS = 8  # looked at one by one
# how `struct` calls each dtype, in the machine's order of bytes; by dtype, since NumPy makes up its name each time
_PACKED = {
    np.dtype(name): code
    for name, code in (
        ("int8", "b"),
        ("int16", "h"),
        ("int32", "i"),
        ("int64", "q"),
        ("uint8", "B"),
        ("uint16", "H"),
        ("uint32", "I"),
        ("uint64", "Q"),
        ("float32", "f"),
        ("float64", "d"),
    )
}


def parse_json(text: bytes | memoryview) -> Any:
    """A JSON document; NaN, Infinity and -Infinity are taken as Triton's clients write them.

    Raises:
        RequestError: it is no JSON, or nested deeper than any request is.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        content = bytes(text)
        if b"NaN" not in content and b"Infinity" not in content:
            raise malformed(f"the body is not valid JSON: {error}.") from error
    try:
        return json.loads(content)
    except RecursionError as error:
        raise malformed("the body is not valid JSON: nested too deeply.") from error
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, or an integer of thousands of digits
        raise malformed(f"the body is not valid JSON: {error}.") from error


def may_hold_booleans(text: bytes | memoryview) -> bool:
    """Whether a document has the word true or false somewhere; mostly not, which spares a look at every value."""
    content = bytes(text)
    # a single byte is found at the speed of memory, a word is not: hence the l of false, and the u of true
    if b"l" in content and b"false" in content:
        return True
    at = -1
    for _ in range(_LETTERS):
        at = content.find(b"u", at + 1)
        if at < 0:
            return False
        if content[max(at - 2, 0) : at + 2] == b"true":
            return True
    return b"true" in content


def array_from_json(
    name: str, data: object, dtype: np.dtype[Any], shape: list[int], count: int, *, may_hold_booleans: bool = True
) -> Array:
    """The tensor that a request's `data` holds.

    Args:
        data: a list, flat or nested as `shape`.
        shape: with product `count`.
        may_hold_booleans: False where no value of the document is a boolean.
    Raises:
        RequestError: another length or nesting, a value of another type, or one that the dtype cannot hold.
    """
    flat = _flattened(name, data, shape, count)
    kind = None if may_hold_booleans else _PACKED.get(dtype)
    if kind is not None:
        try:
            return reshaped(name, np.frombuffer(struct.pack(f"={count}{kind}", *flat), dtype), shape)
        except (struct.error, OverflowError):
            pass  # what is wrong is found below
    types = set(map(type, flat))
    expected, article = _expected(dtype)
    if not types <= expected:
        bad = next(value for value in flat if type(value) not in expected)
        raise malformed(f"input '{name}': 'data' holds {shown(bad)}, expected {article}.")
    try:
        if dtype.kind in "biu":
            array: Array = np.array(flat, dtype)
        else:
            wide = np.array(flat, np.float64)
            with np.errstate(over="raise"):
                array = wide.astype(dtype)
            if dtype.kind == "V":  # ml_dtypes raise no flag
                _check_overflow(wide, array)
    except (OverflowError, FloatingPointError) as error:
        raise malformed(f"input '{name}': 'data' holds a value beyond the range of {dtype.name}.") from error
    return reshaped(name, array, shape)


def json_values(array: Array) -> Any:
    """What `orjson` writes as the flat list of an output's values."""
    if array.dtype.kind == "V":  # bfloat16
        array = array.astype(np.float32)
    return np.ascontiguousarray(array).reshape(-1)


def is_finite(array: Array) -> bool:
    """Whether plain JSON can carry the values: it has neither NaN nor infinities."""
    if array.dtype.kind not in "fV":
        return True
    return bool(np.isfinite(array).all())


def _flattened(name: str, data: object, shape: list[int], count: int) -> list[Any]:
    if not isinstance(data, list):
        raise malformed(f"input '{name}': 'data' is {shown(data)}, expected a list.")
    if not data or type(data[0]) is not list:
        if len(data) != count:
            raise malformed(f"input '{name}': 'data' holds {len(data)} values, shape {shown(shape)} has {count}.")
        return data
    level: list[Any] = data
    for axis, size in enumerate(shape):
        # at `axis`, `level` holds prod(shape[:axis + 1]) entries
        if axis and (set(map(type, level)) != {list} or {len(row) for row in level} != {size}):
            raise malformed(f"input '{name}': 'data' is not nested as its shape {shown(shape)}.")
        if axis:
            level = list(chain.from_iterable(level))
        elif len(level) != size:
            raise malformed(f"input '{name}': 'data' has {len(level)} rows, shape {shown(shape)} has {size}.")
    if len(level) != count:
        raise malformed(f"input '{name}': 'data' is not nested as its shape {shown(shape)}.")
    return level


def _expected(dtype: np.dtype[Any]) -> tuple[frozenset[type], str]:
    if dtype.kind == "b":
        return _BOOL, "true or false"
    if dtype.kind in "iu":
        return _INTEGER, "whole numbers"
    return _NUMBER, "numbers"


def _check_overflow(wide: Array, narrow: Array) -> None:
    if bool((np.isinf(narrow.astype(np.float64)) & np.isfinite(wide)).any()):
        raise OverflowError


def dumps_with_non_finite(document: Any) -> bytes:
    """JSON with NaN, Infinity and -Infinity written as such, for answers that hold them."""
    return json.dumps(document, default=_listed, separators=(",", ":")).encode()


def _listed(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype == np.float32:  # the shortest text that reads back to the same float32
            return [x if not math.isfinite(x) else float(str(np.float32(x))) for x in value.tolist()]
        return value.tolist()
    raise TypeError(type(value).__name__)
