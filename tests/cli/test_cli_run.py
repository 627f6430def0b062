"""`l0runtime run` reads arrays, runs, writes an .npz; on an error it writes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner
from conditional_graphs import choose, conditional_file, normal, residual

from l0runtime.cli import main

SUM = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,2] a, float[N,2] b) => (float[N,2] total) { total = Add (a, b) }"""
NEGATED = '<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[N,2] y) { y = Neg (x) }'


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(onnx.parser.parse_model(SUM), "sum.onnx")
    onnx.save(onnx.parser.parse_model(NEGATED), "neg.onnx")
    np.save("one.npy", np.array([[1, 2]], np.float32))
    np.savez("both.npz", a=np.array([[1, 2]], np.float32), b=np.array([[3, 4]], np.float32))


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["run", *arguments, "--device", "cpu"])
    return result.exit_code, result.stdout, result.stderr


def test_an_npy_file_feeds_the_only_input() -> None:
    assert run("neg.onnx", "--input", "one.npy", "--output", "out.npz") == (0, "y: float32 [1, 2]\n", "")
    assert np.load("out.npz")["y"].tolist() == [[-1, -2]]


def test_an_npz_file_or_named_files_feed_several_inputs() -> None:
    assert run("sum.onnx", "--input", "both.npz", "--output", "out.npz")[0] == 0
    assert np.load("out.npz")["total"].tolist() == [[4, 6]]
    assert run("sum.onnx", "--input", "a=one.npy", "--input", "b=one.npy", "--output", "out.npz")[0] == 0
    assert np.load("out.npz")["total"].tolist() == [[2, 4]]


def test_what_a_conditional_model_spent_is_said_if_asked_for() -> None:
    conditional_file(Path("model.onnx"), residual())
    np.savez("feed.npz", x=normal(4, 4, 5, 5), k=choose(4, 0.25))
    code, printed, _ = run("model.onnx", "--input", "feed.npz", "--output", "out.npz", "--spent")
    assert code == 0
    macs = 2 * 25 * 4 * 4 * 9  # of one sample: two 3x3 convolutions of 4 channels on 5 x 5 pixels
    assert printed == f"y: float32 [4, 4, 5, 5]\n4 samples in 1 runs: {macs:,} MACs, 25% of masked; f 25%\n"
    assert np.load("out.npz").files == ["y"]
    code, _, error = run("neg.onnx", "--input", "one.npy", "--output", "none.npz", "--spent")
    assert code == 1
    assert error.startswith("error: neg.onnx: has no conditional blocks to count.")
    assert not Path("none.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["neg.onnx", "--output", "out.npz"], 1, "error: input 'x' is missing. The model takes x: float32 [N, 2].\n"),
        (
            ["neg.onnx", "--input", "none.npy", "--output", "out.npz"],
            1,
            "error: none.npy: no such file. Give an .npy or .npz file.\n",
        ),
        (
            ["sum.onnx", "--input", "one.npy", "--output", "out.npz"],
            2,
            "error: --input one.npy: the model has several inputs (a, b); write NAME=one.npy.\n",
        ),
        (
            ["sum.onnx", "--input", "a=both.npz", "--output", "out.npz"],
            2,
            "error: --input a=both.npz: an .npz file names its arrays itself; drop 'a='.\n",
        ),
        (
            ["sum.onnx", "--input", "both.npz", "--input", "a=one.npy", "--output", "out.npz"],
            2,
            "error: --input a=one.npy: input 'a' is given twice.\n",
        ),
        (
            ["neg.onnx", "--input", "one.npy", "--output", "out.txt"],
            2,
            "error: --output out.txt: expected a name that ends in .npz.\n",
        ),
        (["none.onnx", "--output", "out.npz"], 1, "error: none.onnx: no such file. Give the path of an .onnx file.\n"),
        (
            ["neg.onnx", "--input", "one.npy", "--output", "no/folder/out.npz"],
            2,
            "error: --output no/folder/out.npz: cannot be written (No such file or directory).\n",
        ),
    ],
)
def test_errors_name_the_cause_and_write_nothing(arguments: list[str], code: int, message: str) -> None:
    before = sorted(Path().iterdir())
    assert run(*arguments) == (code, "", message)
    assert sorted(Path().iterdir()) == before


def test_a_pickle_is_never_loaded() -> None:
    np.save("evil.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    code, _, error = run("neg.onnx", "--input", "evil.npy", "--output", "out.npz")
    assert code == 1
    assert error.startswith("error: evil.npy: cannot be read as an .npy or .npz file (")
