"""Small models, written as ONNX text, that the session tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.parser
import pytest

HEADER = '<ir_version: 8, opset_import: ["": 17]>'
NAMED = {
    # y = x W with W = [[1, 2], [3, 4], [5, 6]]
    "linear": "g (float[N,3] x) => (float[N,2] y) <float[3,2] w={1,2,3,4,5,6}> { y = MatMul (x, w) }",
    "two": """g (float[N,2] a, float[N,2] b) => (float[N,2] total, float[N,2] difference) {
        total = Add (a, b)
        difference = Sub (a, b)
    }""",
}
SaveModel = Callable[..., Path]


@pytest.fixture
def save_model(tmp_path: Path) -> SaveModel:
    """Write a model, given as ONNX text or by one of the names above; keywords become the converter's metadata."""

    def save(text: str, **metadata: str) -> Path:
        model = onnx.parser.parse_model(f"{HEADER} {NAMED.get(text, text)}")
        onnx.helper.set_model_props(model, {f"l0runtime.{key}": value for key, value in metadata.items()})
        path = tmp_path / f"model{len(list(tmp_path.iterdir()))}.onnx"
        onnx.save(model, path)
        return path

    return save
