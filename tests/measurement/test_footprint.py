"""Cold start and memory are those of a fresh process, not of this one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from l0runtime.errors import L0RuntimeError
from l0runtime.measurement.footprint import measure_footprint


def test_a_model_with_more_weights_takes_more_memory(tmp_path: Path) -> None:
    peaks = []
    for megabytes in (1, 64):
        weight = np.ones((1024, 256 * megabytes), np.float32)
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            [onnx.helper.make_tensor_value_info("x", 1, ["N", 1024])],
            [onnx.helper.make_tensor_value_info("y", 1, None)],
            [onnx.numpy_helper.from_array(weight, "w")],
        )
        path = tmp_path / f"{megabytes}.onnx"
        onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
        footprint = measure_footprint(path, {"x": np.ones((1, 1024), np.float32)}, device="cpu", threads=1)
        assert footprint.cold_start_ms == footprint.load_ms + footprint.first_run_ms > 0
        if footprint.peak_memory_bytes is None:
            pytest.skip("this system does not tell a process's peak memory")
        peaks.append(footprint.peak_memory_bytes)
    # the weights themselves are in memory at least once; this process's own size would swamp the difference
    assert peaks[1] - peaks[0] > 60e6
    assert peaks[0] < 60e6


def test_a_failing_process_says_why(tmp_path: Path) -> None:
    with pytest.raises(L0RuntimeError, match=r"measuring in a fresh process failed: .*none\.onnx: no such file"):
        measure_footprint(tmp_path / "none.onnx", {}, device="cpu", threads=1)
