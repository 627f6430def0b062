"""Do the epochs' figures come back as a table and as a picture?"""

from __future__ import annotations

import builtins
import csv
from pathlib import Path
from typing import Any

import pytest

from l0runtime.errors import MissingDependencyError, OptionError
from l0runtime.gates import EpochRecord, plot_records, write_records

RECORDS = [
    EpochRecord(1, 0.5, 2.0, 0.25, 10.0, "3-2", None),
    EpochRecord(2, 0.5, 1.0, 0.125, 9.5, "3-1", 0.125, 0.5, 0.25),
]


def test_records_are_written_as_csv(tmp_path: Path) -> None:
    write_records(RECORDS, tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["epoch", "seconds", "loss", "penalty", "expected_l0", "kept", "test_error", "expected_cost", "kept_cost"],
        ["1", "0.5", "2.0", "0.25", "10.0", "3-2", "", "", ""],
        ["2", "0.5", "1.0", "0.125", "9.5", "3-1", "0.125", "0.5", "0.25"],
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]


def test_a_picture_names_the_gate_vectors_and_shows_the_target(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib, an optional dependency")
    plot_records(RECORDS, tmp_path / "r.svg", target=0.3, names=["first", "second"])
    text = (tmp_path / "r.svg").read_text(encoding="utf-8")
    for label in ("first", "second", "target", "expected", "loss", "test error", "kept units"):
        assert f"<!-- {label} -->" in text
    assert [path.name for path in tmp_path.iterdir()] == ["r.svg"]


def test_a_run_without_tests_or_costs_is_drawn_too(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib, an optional dependency")
    plot_records(RECORDS[:1], tmp_path / "r.png")
    assert (tmp_path / "r.png").stat().st_size > 0


def test_a_picture_without_matplotlib_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError) as caught:
        plot_records(RECORDS, tmp_path / "r.png")
    assert str(caught.value) == "a plot needs matplotlib, which is not installed. Run: pip install 'l0runtime[plot]'"


def test_wrong_pictures_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "r.gif"
    with pytest.raises(OptionError) as caught:
        plot_records(RECORDS, place)
    assert str(caught.value) == f"plot_records {place}: expected a name that ends in .png, .svg or .pdf."
    with pytest.raises(OptionError) as caught:
        plot_records([], tmp_path / "r.png")
    assert str(caught.value) == f"plot_records {tmp_path / 'r.png'}: no records; train for an epoch first."
    with pytest.raises(OptionError) as caught:
        plot_records(RECORDS, tmp_path / "r.png", names=["one"])
    assert str(caught.value) == f"plot_records {tmp_path / 'r.png'}: 1 names for 2 gate vectors."
