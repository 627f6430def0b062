"""Prebound buffers: what is written is what is computed, and never the caller's own memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import l0runtime
from l0runtime.errors import InputError

SaveModel = Callable[..., Path]
X = np.array([[1, 0, 0], [1, 1, -1]], np.float32)


def test_a_bound_run_computes_from_its_buffers(save_model: SaveModel) -> None:
    bound = l0runtime.load(save_model("linear"), device="cpu").bind({"x": X})
    bound.run()
    assert bound.outputs["y"].tolist() == [[1, 2], [-1, 0]]
    bound.inputs["x"][...] = [[0, 1, 0], [0, 0, 1]]
    bound.run()
    assert bound.outputs["y"].tolist() == [[3, 4], [5, 6]]
    bound.update({"x": X})
    bound.run()
    assert bound.outputs["y"].tolist() == [[1, 2], [-1, 0]]


def test_binding_copies_so_the_callers_array_stays_untouched(save_model: SaveModel) -> None:
    mine = X.copy()
    bound = l0runtime.load(save_model("linear"), device="cpu").bind({"x": mine})
    bound.inputs["x"][...] = 0
    assert np.array_equal(mine, X)


def test_runs_reuse_the_same_output_memory(save_model: SaveModel) -> None:
    bound = l0runtime.load(save_model("linear"), device="cpu").bind({"x": X})
    bound.run()
    before = bound.outputs["y"].ctypes.data
    bound.run()
    assert bound.outputs["y"].ctypes.data == before


def test_another_shape_dtype_or_name_is_refused(save_model: SaveModel) -> None:
    session = l0runtime.load(save_model("linear"), device="cpu")
    bound = session.bind({"x": X})
    with pytest.raises(InputError, match=r"^input 'x': found shape \[1, 3\], bound with \[2, 3\]\.$"):
        bound.update({"x": X[:1]})
    with pytest.raises(InputError, match=r"^input 'x': found dtype float64, bound with float32\.$"):
        bound.update({"x": X.astype(np.float64)})
    with pytest.raises(InputError, match=r"^'q' is no input\. Bound are x\.$"):
        bound.update({"q": X})
    with pytest.raises(InputError, match=r"^input 'x': found shape \[3\], expected \[N, 3\]\.$"):
        session.bind({"x": X[0]})


def test_one_binding_survives_many_threads(save_model: SaveModel) -> None:
    bound = l0runtime.load(save_model("linear"), device="cpu", threads=1).bind({"x": X})
    threads = [threading.Thread(target=lambda: [bound.run() for _ in range(300)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bound.outputs["y"].tolist() == [[1, 2], [-1, 0]]
