"""`l0runtime convert`: results on stdout, progress on stderr, exit codes, and nothing written on an error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner

from converters.sources import available_sources
from l0runtime.cli import main

# y = relu(z * (x W1)) W2 with z = (1, 0, 0.5)
GATED = """<ir_version: 9, opset_import: ["": 18]>
g (float[N,2] x) => (float[N,2] y)
<float[2,3] w1 = {1, 2, 3, 4, 5, 6}, float[3] z = {1, 0, 0.5}, float[3,2] w2 = {1, 2, 3, 4, 5, 6}>
{ h = MatMul (x, w1) m = Mul (h, z) r = Relu (m) y = MatMul (r, w2) }"""
STAGES = "load ...\nexport ...\ncompact ...\nverify ...\nreport ...\n"


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(onnx.parser.parse_model(GATED), "gated.onnx")


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["convert", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_a_conversion_prints_its_report_and_its_stages() -> None:
    code, out, err = run("gated.onnx", "-o", "out.onnx")
    assert (code, err) == (0, STAGES)
    assert out.startswith("gated.onnx (onnx) -> out.onnx\n")
    assert "3 -> 2" in out
    assert Path("out.onnx").exists()


def test_json_is_the_report() -> None:
    code, out, _ = run("gated.onnx", "-o", "out.onnx", "--json", "--report", "report.json", "--exact")
    assert code == 0
    report = json.loads(out)
    assert report == json.loads(Path("report.json").read_text())
    assert report["verification"]["float64"] <= 1e-10


def test_a_batch_to_verify_on_is_read_from_a_file() -> None:
    np.savez("batch.npz", x=np.ones((7, 2), np.float32))
    code, out, _ = run("gated.onnx", "-o", "out.onnx", "--json", "--verify-on", "batch.npz")
    assert (code, json.loads(out)["verification"]["batches"]) == (0, ["x 7x2"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("nothing.onnx", "-o", "out.onnx"),
            1,
            "load ...\nerror: nothing.onnx: no such file. Give the path of a checkpoint or of an ONNX file.\n",
        ),
        (
            ("gated.onnx", "-o", "no/out.onnx"),
            1,
            "error: no/out.onnx: the folder no does not exist. Create it first.\n",
        ),
        (
            ("gated.onnx", "-o", "gated.onnx"),
            2,
            "error: gated.onnx: is the source itself; expected another path for the compact model.\n",
        ),
        (("gated.onnx", "-o", "out.onnx", "--set", "last"), 2, "error: --set last: expected KEY=VALUE.\n"),
        (
            ("gated.onnx", "-o", "out.onnx", "--model", "a:b"),
            2,
            "load ...\nerror: gated.onnx: an ONNX file holds its own graph and inputs; leave out the model.\n",
        ),
        (
            ("gated.onnx", "-o", "out.onnx", "--verify-on", "no.npz"),
            1,
            "error: no.npz: no such file. Expected an .npz file with one array per input of the model.\n",
        ),
        (
            ("gated.onnx", "-o", "out.onnx", "--input", "3x"),
            2,
            "error: input '3x': expected sizes of at least 1 joined by x, batch first, and after a colon one of "
            "float32, float64, float16, bfloat16, int64, int32, int8, uint8, bool; e.g. 1x3x224x224 or 1x128:int64.\n",
        ),
    ],
)
def test_an_error_has_its_text_and_exit_code_and_writes_nothing(
    arguments: tuple[str, ...], code: int, message: str
) -> None:
    assert run(*arguments) == (code, "", message)
    assert sorted(path.name for path in Path().iterdir()) == ["gated.onnx"]


def test_a_missing_output_is_a_usage_error() -> None:
    code, out, err = run("gated.onnx")
    assert (code, out) == (2, "")
    assert err.endswith("Error: Missing option '-o' / '--output'.\n")


def test_help_lists_every_format_with_what_it_reads() -> None:
    code, out, _ = run("--help")
    assert code == 0
    section = out.partition("Formats (recognised by content):\n")[2]
    listed = [line.split()[0] for line in section.splitlines() if line.startswith("  ") and line[2] != " "]
    assert listed == list(available_sources())
    assert "  cofi                  folder of CoFiPruning: a Hugging Face BERT and zs.pt\n" in section
