"""The GPU evidence script runs as a whole without a GPU, says what is missing, and hides no failure."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import evidence, pieces
from benchmarks.gpu.evidence import DRY, FULL, SECTIONS, Evidence
from benchmarks.gpu.table import write_table
from benchmarks.gpu.timing import Timed, time_ways
from benchmarks.native_width.networks import NETWORKS
from l0runtime.machine import nvidia_gpus


def test_a_dry_run_goes_through_every_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    assert evidence.main(["--dry", "--out", str(out), "--folder", str(tmp_path / "models")]) == 0
    result = json.loads(out.read_text())
    assert list(result["sections"]) == list(SECTIONS)
    assert (result["errors"], result["wrong"], result["left_out"]) == (0, 0, [])
    assert result["what"] == "dry run on the CPU: these figures mean nothing"
    graph = result["sections"]["graphs"][0]
    assert graph["same"]
    assert {"run with graph", "bound with graph"} <= graph["ms"].keys()
    skipping = result["sections"]["conditional"]
    assert [row["batch"] for row in skipping] == [1, 2]
    assert all(row["same"] and {"masked", "skipped", "half", "run"} == row["ms"].keys() for row in skipping)
    assert all(0 <= row["break_even_rate"] <= 1 for row in skipping)
    table = out.with_suffix(".md").read_text()
    assert table == capsys.readouterr().out.removesuffix("\n")
    assert all(f"## {section}" in table for section in SECTIONS)


def test_without_the_pieces_nothing_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if nvidia_gpus():
        pytest.skip("this machine has a GPU")
    assert evidence.main(["--out", str(tmp_path / "result.json")]) == 1
    assert capsys.readouterr().err.startswith(
        "nothing was measured, because this is missing:\n  no NVIDIA GPU: the driver shows none. "
        "Run this on a machine with one.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_missing_pieces_are_named_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "nvidia_gpus", lambda: ("some GPU",))
    monkeypatch.setattr(pieces, "library_problem", lambda device: "no libcudart.so.13")
    monkeypatch.setattr(pieces.importlib.util, "find_spec", lambda name: None if name == "torch" else object())
    assert pieces.missing_pieces() == [
        "no torch. Install a build of torch for CUDA 13.",
        "onnxruntime cannot load CUDA (no libcudart.so.13). pip install 'onnxruntime-gpu[cuda,cudnn]'",
    ]


def test_a_case_that_fails_is_a_row_and_an_error(tmp_path: Path) -> None:
    found = Evidence(tmp_path / "result.json", DRY)

    def fail() -> dict[str, object]:
        raise RuntimeError("out of\nmemory")

    found.measure("native", {"network": "LeNet-5", "batch": 1}, fail)
    found.measure("native", {"network": "LeNet-5", "batch": 2}, lambda: {"same": False})
    assert (found.errors, found.wrong) == (1, 1)
    assert found.rows["native"][0]["error"] == "RuntimeError: out of memory"
    assert json.loads((tmp_path / "result.json").read_text())["errors"] == 1
    data = found.to_dict() | {"sections": {"native": found.rows["native"][:1]}}
    assert "- LeNet-5 1: RuntimeError: out of memory" in write_table(data)


def test_a_case_without_time_is_listed_not_measured(tmp_path: Path) -> None:
    found = Evidence(tmp_path / "result.json", DRY, started=-1e6)
    found.measure("native", {"network": "LeNet-5", "batch": 1}, lambda: pytest.fail("measured"))
    assert (found.rows, found.left_out) == ({}, ["native LeNet-5 1"])


def test_a_slow_section_leaves_time_for_those_behind_it(tmp_path: Path) -> None:
    # 40 % of the time is gone: correctness may begin no more cases, the sweep may
    started = time.perf_counter() - 0.4 * DRY.limit_seconds
    found = Evidence(tmp_path / "result.json", DRY, started=started)
    found.measure("correctness", {"network": "LeNet-5"}, lambda: pytest.fail("measured"))
    found.measure("sweep", {"channels": 64}, lambda: {"ms": 1.0})
    assert (list(found.rows), found.left_out) == (["sweep"], ["correctness LeNet-5"])
    assert list(SECTIONS.values()) == sorted(SECTIONS.values())
    assert max(SECTIONS.values()) == 1


def test_the_full_run_covers_what_was_asked_for() -> None:
    assert set(FULL.networks) <= set(NETWORKS)
    assert {"LeNet-300-100", "LeNet-5", "WRN-28-10", "ResNet-50", "ViT-B", "BERT-base"} == set(FULL.networks)
    assert set(FULL.closed) == {0.3, 0.5, 0.7}
    assert (min(FULL.batches), max(FULL.batches)) == (1, 256)
    assert FULL.channels == tuple(range(48, 73))
    assert FULL.limit_seconds < 600


def test_a_ratio_is_the_median_of_the_rounds_with_its_interval() -> None:
    timed = Timed({"slow": np.array([2.0, 4.0, 6.0]), "fast": np.array([1.0, 1.0, 2.0])})
    found = timed.ratio("slow", "fast")
    assert found["ratio"] == pytest.approx(3.0)  # of 2, 4 and 3
    assert found["low"] == pytest.approx(2.0)
    assert found["high"] == pytest.approx(4.0)
    assert timed.ms("slow") == 4.0


def test_ways_are_timed_in_turns() -> None:
    order: list[str] = []
    timed = time_ways({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=1e-6)
    assert {name: times.size for name, times in timed.block_ms.items()} == {"a": 12, "b": 12}
    blocks = [name for name, before in zip(order[8:], order[7:], strict=False) if name != before]
    assert len(blocks) > 8  # more than all of one and then all of the other
