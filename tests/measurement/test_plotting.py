"""Pictures hold what they should and are refused before anything is measured for them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import l0runtime
from l0runtime.errors import MissingDependencyError, OptionError
from l0runtime.measurement.plotting import check_plot, layer_times, plot_report
from l0runtime.measurement.profiling import NodeProfile, Peaks, ProfileComparison


def node(layer: str, time_us: float, macs: int = 1) -> NodeProfile:
    return NodeProfile(f"{layer}_nchwc", "Conv" if macs else "Relu", "CPU", time_us, macs, 0, 0.5, layer)


def profile(baseline: list[NodeProfile], candidate: list[NodeProfile]) -> ProfileComparison:
    return ProfileComparison(tuple(baseline), tuple(candidate), Peaks(1, 1), (), ())


def test_layers_are_paired_by_name_in_the_order_of_the_network() -> None:
    rows = layer_times(
        profile(
            [node("conv1", 5), node("relu", 2, 0), node("conv2", 7), node("gone", 1)],
            [node("conv2", 3), node("conv1", 4), node("reorder", 1, 0)],
        )
    )
    assert rows == [("conv1", 5, 4), ("conv2", 7, 3), ("gone", 1, 0), ("everything else", 2, 1)]


def test_only_the_slowest_layers_are_named_and_nothing_is_lost() -> None:
    many = [node(f"conv{index}", index) for index in range(100)]
    rows = layer_times(profile(many, []))
    assert [name for name, _, _ in rows] == [*(f"conv{index}" for index in range(60, 100)), "everything else"]
    assert sum(before for _, before, _ in rows) == sum(range(100))


def test_a_name_of_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        check_plot(tmp_path / "x.gif")
    assert str(caught.value) == f"--plot {tmp_path / 'x.gif'}: expected a name that ends in .png, .svg or .pdf."


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="there is no folder"):
        check_plot(tmp_path / "absent" / "x.png")


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError) as caught:
        check_plot(tmp_path / "x.png")
    assert str(caught.value) == ("a plot needs matplotlib, which is not installed. Run: pip install 'l0runtime[plot]'")


@pytest.mark.parametrize(("batch", "profile"), [([1], False), ([1, 8], True)])
def test_png_and_svg_are_written_whole(
    wide: Path, narrow: Path, tmp_path: Path, batch: list[int], profile: bool
) -> None:
    pytest.importorskip("matplotlib")
    report = l0runtime.bench(
        narrow, wide, batch=batch, device="cpu", budget_seconds=0.1, footprint=False, profile=profile
    )
    plot_report(report, tmp_path / "p.png")
    plot_report(report, tmp_path / "p.svg")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    drawing = (tmp_path / "p.svg").read_text()
    assert drawing.rstrip().endswith("</svg>")
    # matplotlib draws text as paths and keeps it in comments
    for text in ("median latency (ms)", "gated", "compact", f"{report.results[0].speed_up.estimate:.2f}x"):
        assert f"<!-- {text} -->" in drawing
    for text in ("hidden", "out", "everything else"):
        assert (f"<!-- {text} -->" in drawing) is profile
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.name.startswith("p.")) == [".png", ".svg"]
