"""A layer's time is measured once, kept on disk, and never taken from other conditions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from l0runtime.errors import DeviceError, ModelFileError
from l0runtime.measurement import layer_times
from l0runtime.measurement.layer_times import LayerKind, LayerTimes, cache_folder, layer_model, time_layer
from l0runtime.session import load

CONV = LayerKind("Conv", 1, (8, 8), (3, 3), (("pads", (1, 1, 1, 1)),))


def test_a_layer_is_measured_once_and_then_read_from_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = LayerTimes("cpu", 1, tmp_path)
    times = first.times_ms(CONV, [(4, 4), (4, 8), (4, 4)])
    assert times[0] == times[2]
    assert min(times) > 0
    assert first.measured == 2
    assert first.save()

    def never(*args: object, **keywords: object) -> list[float]:
        raise AssertionError("measured again")

    monkeypatch.setattr(layer_times, "time_layer", never)
    second = LayerTimes("cpu", 1, tmp_path)
    assert second.times_ms(CONV, [(4, 4), (4, 8), (4, 4)]) == times
    assert second.measured == 0
    assert second.path == first.path
    assert [path.name for path in tmp_path.iterdir()] == [first.path.name]


def test_other_threads_have_another_table(tmp_path: Path) -> None:
    assert LayerTimes("cpu", 1, tmp_path).path != LayerTimes("cpu", 2, tmp_path).path


def test_tables_of_two_processes_are_joined(tmp_path: Path) -> None:
    one, two = LayerTimes("cpu", 1, tmp_path), LayerTimes("cpu", 1, tmp_path)
    one.times_ms(CONV, [(4, 4)])
    two.times_ms(CONV, [(4, 8)])
    assert one.save()
    assert two.save()
    content = json.loads(one.path.read_text())
    assert content["conditions"]["provider"] == "CPUExecutionProvider"
    assert list(content["ms"]) == [
        "Conv float32 1x8x8 3x3 pads=(1, 1, 1, 1) 4->4",
        "Conv float32 1x8x8 3x3 pads=(1, 1, 1, 1) 4->8",
    ]


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1, "conditions": {"threads": "1"}, "ms": {}}'])
def test_a_file_that_is_no_table_of_these_conditions_is_refused(tmp_path: Path, content: str) -> None:
    path = LayerTimes("cpu", 1, tmp_path).path
    path.write_text(content)
    with pytest.raises(ModelFileError, match=r"is no table of layer times \(.+\)\. Delete it; it is measured again\.$"):
        LayerTimes("cpu", 1, tmp_path)


def test_a_table_that_cannot_be_written_is_reported_by_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = LayerTimes("cpu", 1, tmp_path)
    times.times_ms(CONV, [(4, 4)])

    def full(self: Path, other: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    assert not times.save()
    assert list(tmp_path.iterdir()) == []


def test_a_table_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError):
        LayerTimes("cpu", 1, tmp_path / "file")


def test_a_device_that_is_absent_is_refused_not_replaced(tmp_path: Path) -> None:
    times = LayerTimes("cuda", 1, tmp_path)
    if times.conditions["processor"] != "none":
        pytest.skip("this machine has a GPU")
    with pytest.raises(DeviceError):
        times.times_ms(CONV, [(4, 4)])


@pytest.mark.parametrize(
    ("kind", "widths", "weight", "output"),
    [
        (CONV, (4, 6), (6, 4, 3, 3), (1, 6, 8, 8)),
        (LayerKind("Conv", 2, (8,), (3,), (("strides", (2,)),)), (4, 6), (6, 4, 3), (2, 6, 3)),
        (LayerKind("Conv", 1, (8, 8), (3, 3), (), 2), (4, 6), (6, 2, 3, 3), (1, 6, 6, 6)),
        (LayerKind("Conv", 1, (8, 8), (3, 3), (), 0), (4, 4), (4, 1, 3, 3), (1, 4, 6, 6)),
        (LayerKind("MatMul", 5), (4, 6), (4, 6), (5, 6)),
        (LayerKind("Gemm", 5, dtype="float64"), (4, 6), (4, 6), (5, 6)),
    ],
)
def test_a_layer_alone_is_the_layer(
    kind: LayerKind, widths: tuple[int, int], weight: tuple[int, ...], output: tuple[int, ...]
) -> None:
    made = layer_model(kind, widths)
    (tensor,) = onnx.load_from_string(made).graph.initializer
    array = onnx.numpy_helper.to_array(tensor)
    assert array.shape == weight
    assert array.dtype == kind.dtype
    assert (array != 0).all()
    x = np.ones((kind.batch, widths[0], *kind.space), kind.dtype)
    assert load(made, device="cpu", threads=1)(x).shape == output


def test_a_layer_of_a_thousand_times_the_work_takes_longer() -> None:
    small, large = time_layer(LayerKind("MatMul", 16), [(8, 8), (512, 512)], device="cpu", threads=1)
    assert large > small


def test_the_cache_folder_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L0RUNTIME_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert LayerTimes("cpu", 1).path.parent == tmp_path / "layer-times"
    monkeypatch.delenv("L0RUNTIME_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/l0runtime")
