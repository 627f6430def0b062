"""The report reads as text, as JSON and as metadata."""

from __future__ import annotations

import json

import pytest
from rich.console import Group

from converters.report import KeptAxis, ModelCost, Report
from converters.report_view import as_text, kept_lines
from converters.sources import GateGroup
from converters.verification import Verification
from converters.widths import LayerWidth, WidthChange

VERIFICATION = Verification(
    batches=("x 2x5", "x 1x5"),
    shapes={"x": (1, 5)},
    outputs={"y": 3.4567e-7, "z": 1e-8},
    limit=9.5e-7,
    limit_reason="because",
    torch=None,
    float64=4.4e-16,
    float64_skipped=None,
    decided_by="float32",
)
REPORT = Report(
    source="a.safetensors",
    format="l0runtime",
    output="b.onnx",
    gates=(GateGroup("fc", 6, 4, "paper"),),
    widths=(
        WidthChange(LayerWidth("fc", "Gemm", 5, 6), LayerWidth("fc", "Gemm", 5, 4)),
        WidthChange(LayerWidth("gone", "Conv", 5, 6), None),
    ),
    before=ModelCost(1000, 2000, 4000),
    after=ModelCost(500, 1000, 2000),
    verification=VERIFICATION,
    kept=tuple(KeptAxis(f"v{n}[1]", 2, "a reshape", 100 - n) for n in range(25)),
    without_rule=("Odd",),
    notes=("a note",),
    seconds={"load": 1.0},
    peak_memory_bytes=2**20 * 7,
    versions={"l0runtime": "0.1.0"},
)


def test_the_text_says_everything_that_matters() -> None:
    text = " ".join(str(REPORT).split())  # lines break anywhere
    for part in (
        "a.safetensors (l0runtime) -> b.onnx",
        "6 -> 4",
        "6 -> gone",
        "2.00x",
        "verified equal on 2 batches: gated against compact 3.5e-07 of the output's scale; limit 9.5e-07 (because)",
        "in float64 4.4e-16",
        "v0[1]: 2 of them, 100 parameters: a reshape",
        "and 15 more, see the JSON report",
        "operators without a rule, whose axes stay whole: Odd",
        "note: a note",
        "time: load 1.00 s; peak memory of the process 7 MiB",
    ):
        assert part in text


def test_a_decision_in_float64_is_said() -> None:
    doubtful = Verification(**{**vars(VERIFICATION), "decided_by": "float64", "torch": 2e-6})
    text = str(Report(**{**vars(REPORT), "verification": doubtful}))
    text = " ".join(text.split())
    assert "torch against compact 2.0e-06" in text
    assert "Decided in float64: float32 amplifies rounding here, on both sides" in text


def test_the_json_is_plain_data() -> None:
    plain = REPORT.to_json()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["widths"][1]["after"] is None
    assert plain["verification"]["outputs"] == {"y": 3.4567e-7, "z": 1e-8}


def test_the_metadata_holds_no_path_and_no_time_and_the_costliest_reasons_only() -> None:
    entries = REPORT.metadata()
    assert all(key.startswith("l0runtime.") for key in entries)
    assert "safetensors" not in "".join(entries.values())
    assert not any("seconds" in key or "memory" in key for key in entries)
    assert len(json.loads(entries["l0runtime.kept"])) == 20
    assert json.loads(entries["l0runtime.verification"])["float32"] == pytest.approx(3.5e-7)
    assert json.loads(entries["l0runtime.widths"]) == [["fc", 5, 6, 5, 4], ["gone", 5, 6, 0, 0]]


def test_no_dead_index_means_no_heading() -> None:
    assert as_text(Group(*kept_lines((), ()))) == ""
