"""The benchmark of formats compares with the original's outputs, and would notice another answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from benchmarks.sources.library import recorded
from benchmarks.sources.run import AMLAB, BAR, FORMATS, convert_one, table
from benchmarks.sources.shrinking import shown_epochs
from converters.sources import available_sources


class Shifted(nn.Module):
    def __init__(self, masked: nn.Module) -> None:
        super().__init__()
        self.masked = masked

    def forward(self, *inputs: Tensor) -> Tensor:
        output: Tensor = self.masked(*inputs)
        return output + 1e-4 * output.abs().max()


def test_a_file_of_a_library_is_held_against_its_own_outputs(tmp_path: Path) -> None:
    made = recorded.MAKERS["nni"](tmp_path)
    row = convert_one("nni", made, tmp_path)
    assert row["relative_difference"] <= BAR
    assert row["parameters"][1] < row["parameters"][0]
    wrong = convert_one("nni", replace(made, masked=Shifted(made.masked)), tmp_path)
    assert wrong["relative_difference"] > BAR


def test_every_format_has_an_example() -> None:
    names = [*FORMATS, *AMLAB]
    for format in available_sources():
        assert any(name == format or name.startswith(f"{format} (") for name in names), format


def test_the_table_shows_what_was_measured() -> None:
    row: dict[str, Any] = {
        "origin": "by hand",
        "relative_difference": 2e-7,
        "parameters": [200, 100],
        "macs": [1000, 250],
        "speed_up": {"ratio": 1.5, "low": 1.4, "high": 1.6, "batch": 4},
    }
    assert table({"formats": {"toy": row}}).splitlines()[-1] == (
        "| toy | by hand | 2.0e-07 | 100 of 200 | 25 % | 1.50 [1.40, 1.60] (4) |"
    )


def test_errors_are_measured_at_both_ends_and_between() -> None:
    assert shown_epochs(15) == [1, 5, 10, 15]
    assert shown_epochs(2) == [1, 2]
