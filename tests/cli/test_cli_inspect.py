"""`l0runtime inspect` answers what is in a file and why an axis is not cut."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnx.parser
import pytest
from click.testing import CliRunner

from l0runtime.cli import main

# y = relu(z * (x W1)) W2 with z = (1, 0, 0.5)
GATED = """<ir_version: 9, opset_import: ["": 18]>
g (float[N,2] x) => (float[N,2] y)
<float[2,3] w1 = {1, 2, 3, 4, 5, 6}, float[3] z = {1, 0, 0.5}, float[3,2] w2 = {1, 2, 3, 4, 5, 6}>
{ h = MatMul (x, w1) m = Mul (h, z) r = Relu (m) y = MatMul (r, w2) }"""


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(onnx.parser.parse_model(GATED), "gated.onnx")


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["inspect", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_a_file_is_described() -> None:
    code, out, err = run("gated.onnx")
    assert (code, err) == (0, "")
    assert out.startswith("gated.onnx: format onnx, 15 parameters\n")
    assert "3 -> 2" in out


def test_json_is_plain() -> None:
    code, out, _ = run("gated.onnx", "--json")
    assert (code, json.loads(out)["format"]) == (0, "onnx")


def test_why_answers_for_one_axis_in_one_line() -> None:
    assert run("gated.onnx", "--why", "h[1]") == (0, "h[1]: cut from 3 to 2\n", "")
    assert run("gated.onnx", "--why", "y[1]", "--json") == (0, '"y[1]: every index is live"\n', "")


def test_a_malformed_question_is_a_usage_error() -> None:
    expected = "error: --why h: expected a value's name and an axis, such as relu_1[1].\n"
    assert run("gated.onnx", "--why", "h") == (2, "", expected)


def test_a_missing_file_is_refused() -> None:
    expected = "error: no.onnx: no such file. Give the path of a checkpoint or of an ONNX file.\n"
    assert run("no.onnx") == (1, "", expected)
