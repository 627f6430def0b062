"""Cutting and padding give what one run would, and a model that mixes rows is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import l0runtime
from l0runtime.errors import OptionError, UnsupportedModelError
from l0runtime.session.batches import Piece, cut, pad_rows

SaveModel = Callable[..., Path]
W = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
MEAN = "g (float[N,3] x) => (float[N,3] y) <int64[1] first={0}> { m = ReduceMean <axes=[0]> (x) y = Sub (x, m) }"


def rows(count: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(0).integers(-9, 9, (count, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("count", "max_batch", "buckets", "pieces"),
    [
        (5, 2, (), [Piece(0, 2, 2), Piece(2, 4, 2), Piece(4, 5, 1)]),
        (5, None, (4, 8), [Piece(0, 5, 8)]),
        (19, None, (4, 8), [Piece(0, 8, 8), Piece(8, 16, 8), Piece(16, 19, 4)]),
        (7, 6, (4, 8), [Piece(0, 6, 8), Piece(6, 7, 4)]),
        (4, None, (4,), [Piece(0, 4, 4)]),
        (0, 2, (4,), [Piece(0, 0, 0)]),
    ],
)
def test_a_batch_is_cut_by_hand(
    count: int, max_batch: int | None, buckets: tuple[int, ...], pieces: list[Piece]
) -> None:
    assert list(cut(count, max_batch, buckets)) == pieces


def test_padding_adds_zero_rows_and_keeps_a_full_array_as_it_is() -> None:
    x = np.array([[1, 2]])
    assert pad_rows(x, 3).tolist() == [[1, 2], [0, 0], [0, 0]]
    assert pad_rows(x, 1) is x


@pytest.mark.parametrize("options", [{"max_batch": 2}, {"buckets": (4,)}, {"buckets": (1, 4), "max_batch": 3}])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 9])
def test_every_batch_size_gives_what_one_run_gives(
    save_model: SaveModel, options: dict[str, object], count: int
) -> None:
    session = l0runtime.load(save_model("linear"), device="cpu", **options)  # type: ignore[arg-type]
    x = rows(count)
    assert np.array_equal(session(x), x @ W)


def test_onnxruntime_sees_only_the_buckets(save_model: SaveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    session = l0runtime.load(save_model("linear"), device="cpu", buckets=(2, 8))
    session(rows(3))  # the check of independence runs other sizes, once
    seen: list[int] = []
    original = session._run_arrays
    monkeypatch.setattr(
        session, "_run_arrays", lambda feed, names: seen.append(len(feed["x"])) or original(feed, names)
    )
    for count in (1, 2, 3, 8, 9):
        session(rows(count))
    assert seen == [2, 2, 8, 8, 8, 2]


@pytest.mark.parametrize("options", [{"max_batch": 2}, {"buckets": (8,)}])
def test_a_model_that_mixes_rows_is_refused_not_run_wrongly(save_model: SaveModel, options: dict[str, object]) -> None:
    session = l0runtime.load(save_model(MEAN), device="cpu", **options)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError) as caught:
        session(rows(5))
    assert str(caught.value) == (
        "batches cannot be cut, padded or merged: output 'y' of a row depends on the other rows of its batch. "
        "Load the model without max_batch and buckets, and do not batch it."
    )


@pytest.mark.parametrize(
    "text",
    [
        # the first row is as it is alone
        "g (float[N,3] x) => (float[N,3] y) <int64 a={0}> { y = CumSum (x, a) }",
        "g (float[N,3] x) => (float[N,3] y) <int64 a={0}> { y = CumSum <reverse = 1> (x, a) }",
        # the row that holds the largest value is as it is alone
        "g (float[N,3] x) => (float[N,3] y) { m = ReduceMax <keepdims = 0> (x) y = Div (x, m) }",
        "g (float[N,3] x) => (float[N,3] y) { q, s, z = DynamicQuantizeLinear (x) y = DequantizeLinear (q, s, z) }",
        # rows pass their values on
        "g (float[N,3] x) => (float[N,3] y) <int64[4] p={1,0,-1,0}> { y = Pad (x, p) }",
    ],
    ids=["running sum", "running sum from behind", "maximum", "quantisation", "shift"],
)
@pytest.mark.parametrize("largest", [0, 2, 4])
def test_mixing_that_leaves_some_rows_alone_is_noticed(save_model: SaveModel, text: str, largest: int) -> None:
    session = l0runtime.load(save_model(text), device="cpu", max_batch=2)
    x = np.random.default_rng(1).uniform(1, 2, (5, 3)).astype(np.float32)
    x[largest] *= 10
    with pytest.raises(UnsupportedModelError, match="output 'y' of a row depends on the other rows"):
        session(x)


def test_a_fixed_batch_dimension_is_refused_when_loading(save_model: SaveModel) -> None:
    path = save_model("g (float[1,3] x) => (float[1,3] y) { y = Neg (x) }")
    with pytest.raises(UnsupportedModelError, match=r"found x: float32 \[1, 3\]; y: float32 \[1, 3\]"):
        l0runtime.load(path, device="cpu", max_batch=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "max_batch = 0: expected a whole number of at least 1."),
        ({"max_batch": "8"}, "max_batch = '8': expected a whole number of at least 1."),
        ({"buckets": 8}, "buckets = 8: expected ascending sizes of at least 1, such as (1, 8, 32)."),
        ({"buckets": (8, 4)}, "buckets = [8, 4]: expected ascending sizes of at least 1, such as (1, 8, 32)."),
        ({"buckets": (4,), "max_batch": 5}, "max_batch = 5: above the largest bucket, 4."),
    ],
)
def test_limits_without_a_meaning_are_refused(save_model: SaveModel, options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        l0runtime.load(save_model("linear"), device="cpu", **options)  # type: ignore[arg-type]
    assert str(caught.value) == message
