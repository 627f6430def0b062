"""A padded model replaces the unpadded one only where it is measured to be faster."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from click.testing import CliRunner
from small_models import make_mlp

from converters import convert
from converters.alignment import Target, check_align
from l0runtime import measurement
from l0runtime.cli import main
from l0runtime.errors import DeviceError, OptionError
from l0runtime.measurement import Interval, Verdict, layer_times
from l0runtime.measurement.layer_times import LayerKind

# 5 of 12 hidden units are open
GATES = (1.0, 0.0, 0.5, 0.0, 0.25, 1.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0)


@pytest.fixture
def gated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("L0RUNTIME_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "gated.onnx"
    onnx.save(make_mlp(GATES, inputs=7), path)
    return path


def hidden(path: Path) -> int:
    """Hidden units: fc1.weight is [hidden, 7]."""
    (width,) = [int(tensor.dims[0]) for tensor in onnx.load(path).graph.initializer if list(tensor.dims)[1:] == [7]]
    return width


def pretend(monkeypatch: pytest.MonkeyPatch, verdict: Verdict, estimate: float) -> None:
    """Layers of 8 are fast, and the padded model measures as said."""

    def times(kind: LayerKind, widths: list[tuple[int, int]], **conditions: object) -> list[float]:
        return [1.0 if 8 in pair else 2.0 for pair in widths]

    speed = SimpleNamespace(speed_up=Interval(estimate, estimate - 0.1, estimate + 0.1), verdict=verdict)
    monkeypatch.setattr(layer_times, "time_layer", times)
    monkeypatch.setattr(measurement, "compare_speed", lambda *arguments, **keywords: speed)


def test_without_align_nothing_is_padded(gated: Path, tmp_path: Path) -> None:
    convert(gated, tmp_path / "out.onnx")
    assert hidden(tmp_path / "out.onnx") == 5


@pytest.mark.parametrize(("align", "width"), [(4, 8), ("4", 8), (6, 6), (12, 12), (16, 5), ("none", 5)])
def test_a_number_pads_to_its_multiples(gated: Path, tmp_path: Path, align: int | str, width: int) -> None:
    # exact: the float64 twin must be padded alike, or its weights would not be those of the model
    report = convert(gated, tmp_path / "out.onnx", align=align, exact=True)  # type: ignore[arg-type]
    assert hidden(tmp_path / "out.onnx") == width
    assert report.verification.float64 is not None


def test_auto_takes_the_padded_model_where_it_is_faster(
    gated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, Verdict.FASTER, 1.5)
    report = convert(gated, tmp_path / "out.onnx", align="auto", exact=True)
    assert hidden(tmp_path / "out.onnx") == 8
    # 7 x 5, 7 x 8, 7 x 12 and 5 x 3, 8 x 3, 12 x 3
    assert report.notes == (
        "align auto on cpu, 1 threads, batch 1 (6 layer times measured): 1 of 1 widths padded, "
        "1.500 times as fast as unpadded, 95 % interval [1.400, 1.600]",
    )
    assert "align" in report.seconds
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "gated.onnx", "out.onnx"]


@pytest.mark.parametrize("verdict", [Verdict.NOT_FASTER, Verdict.INCONCLUSIVE])
def test_auto_keeps_the_unpadded_model_where_it_is_not(
    gated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: Verdict
) -> None:
    pretend(monkeypatch, verdict, 0.9)
    report = convert(gated, tmp_path / "out.onnx", align="auto")
    assert hidden(tmp_path / "out.onnx") == 5
    assert report.notes[0].endswith(
        "1 of 1 widths could be padded, but that is 0.900 times as fast as unpadded, "
        "95 % interval [0.800, 1.000]; left unpadded"
    )


def test_auto_measures_layers_and_models_for_real(gated: Path, tmp_path: Path) -> None:
    report = convert(gated, tmp_path / "out.onnx", align="auto", align_for=Target("cpu", 1, 16))
    assert report.notes[0].startswith("align auto on cpu, 1 threads, batch 16 (6 layer times measured): ")
    (table,) = (tmp_path / "cache" / "layer-times").iterdir()
    assert "Gemm float32 16 7->8" in json.loads(table.read_text())["ms"]


def test_auto_for_a_device_that_is_absent_writes_nothing(gated: Path, tmp_path: Path) -> None:
    if layer_times.nvidia_gpus():
        pytest.skip("this machine has a GPU")
    with pytest.raises(DeviceError):
        convert(gated, tmp_path / "out.onnx", align="auto", align_for=Target("cuda"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gated.onnx"]


@pytest.mark.parametrize("align", ["fast", "0", "-4", "1.5", ""])
def test_anything_else_is_refused(gated: Path, align: str) -> None:
    message = f"align '{align}': expected auto, none or a number of channels of at least 1."
    with pytest.raises(OptionError) as raised:
        check_align(align)
    assert str(raised.value) == message
    result = CliRunner().invoke(main, ["convert", str(gated), "-o", str(gated.with_name("o.onnx")), f"--align={align}"])
    assert (result.exit_code, result.stderr) == (2, f"error: {message}\n")


def test_the_command_line_pads_too(gated: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["convert", str(gated), "-o", str(tmp_path / "out.onnx"), "--align", "4"])
    assert result.exit_code == 0
    assert hidden(tmp_path / "out.onnx") == 8
    assert "it pads the width to one that the hardware likes" in result.stdout
