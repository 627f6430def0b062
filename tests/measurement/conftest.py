"""Pairs of models that compute the same at very different cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

LIVE = 8


def hidden_layer(width: int, *, scale: float = 1.0) -> onnx.ModelProto:
    """x [N, 16] -> hidden [N, width] -> y [N, 4], of which only the first 8 hidden units are not zero."""
    generator = np.random.default_rng(0)
    first = np.zeros((16, width), np.float32)
    second = np.zeros((width, 4), np.float32)
    first[:, :LIVE] = generator.standard_normal((16, LIVE))
    second[:LIVE] = generator.standard_normal((LIVE, 4)) * scale
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "first"], ["h"], "hidden"),
            helper.make_node("Relu", ["h"], ["r"], "relu"),
            helper.make_node("MatMul", ["r", "second"], ["y"], "out"),
        ],
        "hidden_layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """The gated model: 20,000 hidden units, of which 8 live."""
    path = tmp_path / "wide.onnx"
    onnx.save(hidden_layer(20_000), path)
    return path


@pytest.fixture
def narrow(tmp_path: Path) -> Path:
    """The compact model: the 8 live hidden units."""
    path = tmp_path / "narrow.onnx"
    onnx.save(hidden_layer(LIVE), path)
    return path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Compact too, but its output is 1 % too large."""
    path = tmp_path / "other.onnx"
    onnx.save(hidden_layer(LIVE, scale=1.01), path)
    return path
