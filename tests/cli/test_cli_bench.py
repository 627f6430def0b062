"""`l0runtime bench` prints, writes and exits as promised."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnx.parser
import pytest
from click.testing import CliRunner

from l0runtime.cli import main
from l0runtime.cli.bench import parse_batches, parse_margin
from l0runtime.errors import OptionError

NEGATE = '<ir_version: 8, opset_import: ["": 17]> g (float[N,L] x) => (float[N,L] y) { y = Neg (x) }'


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "negate.onnx"
    onnx.save(onnx.parser.parse_model(NEGATE), path)
    return str(path)


def run(model: str, *arguments: str) -> tuple[int, str, str]:
    common = ["bench", model, "--against", model, "--device", "cpu", "--seconds", "0.05", "--no-footprint"]
    result = CliRunner().invoke(main, [*common, *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_a_model_against_itself_is_inconclusive_with_code_2(model: str) -> None:
    code, out, err = run(model, "--margin", "99%", "--dim", "L=4", "--batch", "1,2")
    assert code == 2
    assert "INCONCLUSIVE" in out
    assert "A/A control" in out
    assert "batch 2: measuring" in err
    assert "measuring" not in out


def test_json_is_all_of_stdout_and_csv_lands_in_its_file(model: str, tmp_path: Path) -> None:
    code, out, _ = run(
        model, "--margin", "99%", "--batch", "3", "--shape", "x=3x5", "--json", "--csv", str(tmp_path / "out.csv")
    )
    assert code == 2
    assert json.loads(out)["results"][0]["shapes"] == {"x": [3, 5]}
    assert (tmp_path / "out.csv").read_text().count("\n") == 3


def test_a_missing_device_is_refused_with_code_1(model: str) -> None:
    result = CliRunner().invoke(main, ["bench", "none.onnx", "--against", model, "--device", "cpu"])
    assert (result.exit_code, result.stderr) == (1, "error: none.onnx: no such file. Give the path of an .onnx file.\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--batch", "1,x"], 2, "error: --batch 1,x: expected sizes of at least 1, such as 1,8,32.\n"),
        (["--margin", "2 percent"], 2, "error: --margin 2 percent: expected a fraction such as 2% or 0.02.\n"),
        (["--dim", "L"], 2, "error: --dim L: expected NAME=VALUE.\n"),
        (["--shape", "x=1xL"], 2, "error: --shape x=1xL: 'L' is no whole number.\n"),
        (
            ["--rates", "0,50", "--profile"],
            2,
            "error: --profile with --rates: nodes are not profiled at driven rates. Leave one out.\n",
        ),
        (
            ["--dim", "L=2", "--csv", "absent/x.csv"],
            2,
            "error: --csv absent/x.csv: there is no folder absent. Create it first.\n",
        ),
        (["--dim", "Q=1"], 1, "error: size given for dimension 'Q': the model's dynamic dimensions are 'L', 'N'.\n"),
    ],
)
def test_wrong_usage_names_the_option(model: str, arguments: list[str], code: int, message: str) -> None:
    found, out, err = run(model, *arguments)
    assert (found, out) == (code, "")
    assert err.endswith(message)


def test_margins_and_batches_are_read_as_written() -> None:
    assert parse_margin("2%") == 0.02
    assert parse_margin("0.02") == 0.02
    assert parse_margin("0") == 0
    assert parse_batches("1, 8,32") == [1, 8, 32]
    for text in ("100%", "-1%", "x", ""):
        with pytest.raises(OptionError):
            parse_margin(text)
    for text in ("0", "", "1,,2", "-1"):
        with pytest.raises(OptionError):
            parse_batches(text)


def test_a_plot_without_matplotlib_or_with_a_wrong_name_is_refused(model: str, tmp_path: Path) -> None:
    code, _, err = run(model, "--dim", "L=2", "--plot", str(tmp_path / "x.txt"))
    assert (code, err.splitlines()[-1]) == (
        2,
        f"error: --plot {tmp_path / 'x.txt'}: expected a name that ends in .png, .svg or .pdf.",
    )
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        code, _, err = run(model, "--dim", "L=2", "--plot", str(tmp_path / "x.png"))
        assert (code, err.splitlines()[-1]) == (
            1,
            "error: a plot needs matplotlib, which is not installed. Run: pip install 'l0runtime[plot]'",
        )
        assert not (tmp_path / "x.png").exists()
    else:
        run(model, "--dim", "L=2", "--plot", str(tmp_path / "x.svg"))
        assert (tmp_path / "x.svg").read_text().startswith("<?xml")
