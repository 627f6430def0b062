"""The chain of the alignment benchmark is what it says: 63 of 64 channels, padded back to 64 without another result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import l0runtime
from benchmarks.alignment.models import LAYERS, save_chain
from converters import convert


@pytest.mark.parametrize(("align", "width"), [("none", 7), (8, 8)])
def test_the_chain_s_closed_channels_go_and_come_back_as_padding(tmp_path: Path, align: object, width: int) -> None:
    gated = save_chain(tmp_path, channels=8, open_channels=7)
    compact = tmp_path / "compact.onnx"
    convert(gated, compact, align=align, exact=False)  # type: ignore[arg-type]
    shapes = [list(tensor.dims)[:2] for tensor in onnx.load(compact).graph.initializer if len(tensor.dims) == 4]
    assert shapes == [[width, 8], *[[width, width]] * (LAYERS - 2), [8, width]]
    x = np.random.default_rng(0).standard_normal((1, 8, 28, 28)).astype(np.float32)
    expected, found = (l0runtime.load(path, device="cpu", threads=1)(x) for path in (gated, compact))
    # float32 sums of 72 terms through 8 layers
    assert np.abs(expected - found).max() < 1e-5 * np.abs(expected).max()
