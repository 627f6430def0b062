"""`l0runtime demo` goes the whole way, and both models classify alike."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from l0runtime.cli import main


def test_one_epoch_of_the_demo_leaves_every_file_and_the_figures(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["demo", "--epochs", "1", "--json", "-o", str(tmp_path / "demo")])
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["test_error"]["torch"] == figures["test_error"]["gated"] == figures["test_error"]["compact"]
    assert figures["conversion"]["verification"]["float64"] <= 1e-10
    assert [entry["batch"] for entry in figures["bench"]["results"]] == [1, 32]
    names = ["compact.onnx", "gated.onnx", "gated.safetensors", "report.json"]
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == names


def test_a_folder_that_cannot_be_made_is_refused_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(main, ["demo", "-o", str(tmp_path / "file" / "demo")])
    assert result.exit_code == 1
    assert result.stderr == f"error: {tmp_path / 'file' / 'demo'}: the folder cannot be made (Not a directory).\n"
