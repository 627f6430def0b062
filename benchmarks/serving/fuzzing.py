"""How are requests spoilt, byte by byte, and what is a right answer to a spoilt one?"""

from __future__ import annotations

import json
import random

import numpy as np

# the model asked: y = x W, x [N, 3]
W = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
X = np.array([[1, 0, 2], [3, 4, 5]], np.float32)
SEED_JSON = json.dumps(
    {
        "id": "a",
        "inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "parameters": {"binary_data_size": 24}}],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        "parameters": {"timeout": 5000000},
    }
).encode()
TOKENS = (
    b'-1 0 1e999 NaN null true [] {} "" "x" 18446744073709551616 9223372036854775808 [[ ]] \\ud800 \x00 \xff '
    b'{"a":{}} [2,3] shape data'
).split(b" ")
HTTP_TOKENS = (
    b"\r\n|\r\n\r\n|\n|:|Content-Length: 5\r\n|Transfer-Encoding: chunked\r\n|Expect: 100-continue\r\n|0\r\n\r\n|"
    b"Connection: upgrade\r\nUpgrade: h2c\r\n|HTTP/2.0|HTTP/1.0|PRI * |%00|%2e%2e/|?|#|GET |\x00|\xff\xfe|-1|"
    b"99999999999999999999999"
).split(b"|")


def mutated(generator: random.Random, content: bytes, tokens: list[bytes] = TOKENS) -> bytes:
    """A few bytes changed, removed, inserted, repeated, or the end cut off."""
    found = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        at = generator.randrange(len(found) + 1)
        what = generator.randrange(6)
        if what == 0 and at < len(found):
            found[at] = generator.randrange(256)
        elif what == 1:
            del found[at : at + generator.randint(1, 8)]
        elif what == 2:
            found[at:at] = generator.choice(tokens)
        elif what == 3:
            found[at : at + generator.randint(1, 6)] = generator.choice(tokens)
        elif what == 4:
            found[at:at] = found[at : at + generator.randint(1, 30)]
        else:
            del found[at:]
    return bytes(found)


def spoilt_request(generator: random.Random) -> tuple[bytes, bytes, int]:
    """A binary request whose JSON, values or declared length are spoilt: both parts, and the length."""
    head, values = SEED_JSON, X.tobytes()
    if generator.random() < 0.75:
        head = mutated(generator, head)
    if generator.random() < 0.4:
        values = mutated(generator, values)
    length = len(head) if generator.random() < 0.8 else generator.choice([0, 1, len(head) + 1, 10**12])
    return head, values, length


def is_right(length: str | None, body: bytes, values: bytes) -> bool:
    """Whether a 200 holds the product of the bytes that were sent as x.

    Args:
        length: of the JSON at the start of the body, as the answer's header says; None for JSON alone.
        values: that were sent after the JSON.
    """
    sent = np.frombuffer(values, np.float32).reshape(-1, 3)
    if length is None:
        found = np.array(json.loads(body)["outputs"][0]["data"], np.float32)
    else:
        found = np.frombuffer(body[int(length) :], np.float32)
    with np.errstate(all="ignore"):
        expected = sent @ W
    return bool(np.allclose(found.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5, equal_nan=True))


def values_of(head: bytes, values: bytes, length: int) -> bytes:
    """What a server takes for the values, if it takes the request at all."""
    start = length if 0 < length <= len(head) else len(head)
    return (head + values)[start:]
