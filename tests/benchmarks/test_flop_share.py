"""Where calls take seconds, a few of each model are timed in pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser

from benchmarks.flop_share.measure import PAIRS, time_pairs
from benchmarks.native_width.prepare import Files


def test_pairs_time_both_models_equally_often(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[256,256] x) => (float[256,256] y) { y = MatMul (x, x) }"""
    path = tmp_path / "square.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    found = time_pairs(Files(path, path, path), {"x": np.ones((256, 256), np.float32)})
    assert {kind: len(times) for kind, times in found["pairs_ms"].items()} == {"gated": PAIRS, "compact": PAIRS}
    ratio = found["time_ratio"]
    assert 0 < ratio["low"] <= ratio["ratio"] <= ratio["high"]
