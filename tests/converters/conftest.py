"""Files that the tests of the converters share."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from small_models import make_mlp


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def mlp(tmp_path: Path) -> Path:
    """The gated MLP of small_models as a file: 6 hidden units, 2 of them closed."""
    path = tmp_path / "mlp.onnx"
    onnx.save(make_mlp(), path)
    return path
