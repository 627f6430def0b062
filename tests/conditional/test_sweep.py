"""A sweep runs every block at exactly the rate it names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conditional_graphs import conditional_file, nested, residual

from l0runtime.cli import main
from l0runtime.cli.rates import parse_rates
from l0runtime.conditional import ConditionalBlock, ConditionalModel
from l0runtime.conditional.sweep import RatePoint, choose, sweep_rates
from l0runtime.errors import InputError, OptionError, UnsupportedModelError

MODEL = ConditionalModel(
    (
        ConditionalBlock("a", "ga", "da", "", "samples", None, True, True, 100, 1, 0, "a.If"),
        ConditionalBlock("b", "gb", "db", "", "samples", 0, False, True, 10, 1, 0, "b.If"),
    ),
    7,
)


@pytest.mark.parametrize("batch", [1, 3, 32])
@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_all_choices_together_run_each_block_at_its_rate(rate: float, batch: int) -> None:
    choices = [choose(MODEL, rate, batch, number) for number in range(20)]
    runs_a = np.concatenate([choice["forced:ga"] for choice in choices])
    runs_b = np.concatenate([choice["forced:gb"] for choice in choices])
    assert runs_a.mean() == pytest.approx(rate)
    assert (1 - runs_b).mean() == pytest.approx(rate)  # it runs where its gate is 0


def test_the_work_of_each_rate_is_that_of_its_blocks(tmp_path: Path) -> None:
    conditional_file(tmp_path / "model.onnx", nested())
    points = sweep_rates(tmp_path / "model.onnx", tmp_path / "masked_model.onnx", rates=[0.5], seconds=0.0)
    convolution = 25 * 4 * 4 * 9
    assert [(point.rate, point.macs) for point in points] == [
        (0.0, 0),
        (0.5, 0.5 * 2 * convolution + 0.25 * convolution),
        (1.0, 3 * convolution),
    ]
    assert all(point.masked_ms is not None and point.masked_ms > 0 and point.conditional_ms > 0 for point in points)


def test_the_line_goes_from_nothing_runs_to_the_masked_model() -> None:
    point = RatePoint(batch=1, rate=0.25, macs=0, conditional_ms=6.0, masked_ms=10.0, line_ms=2 + 0.25 * (10 - 2))
    assert point.over_line == pytest.approx(1.5)


def test_the_command_prints_every_rate(tmp_path: Path) -> None:
    conditional_file(tmp_path / "model.onnx", residual())
    arguments = ["bench", str(tmp_path / "model.onnx"), "--against", str(tmp_path / "masked_model.onnx")]
    arguments += ["--device", "cpu", "--rates", "0,50,100", "--seconds", "0.1", "--batch", "1,2"]
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    points = json.loads(result.stdout)
    assert [(point["batch"], point["rate"]) for point in points] == [(n, r) for n in (1, 2) for r in (0, 0.5, 1)]
    result = CliRunner().invoke(main, arguments)
    assert "MACs per sample" in result.stdout


def test_a_whole_shape_says_nothing_of_the_batch(tmp_path: Path) -> None:
    conditional_file(tmp_path / "model.onnx", residual())
    shapes = {"x": (1, 4, 5, 5), "k": (1, 1, 1, 1)}
    points = sweep_rates(tmp_path / "model.onnx", batches=[3], rates=[], seconds=0.0, shapes=shapes)
    assert [(point.batch, point.rate, point.macs) for point in points] == [(3, 0.0, 0), (3, 1.0, 2 * 25 * 4 * 4 * 9)]


def test_rates_are_written_as_csv_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    conditional_file(tmp_path / "model.onnx", residual())
    arguments = ["bench", str(tmp_path / "model.onnx"), "--against", str(tmp_path / "masked_model.onnx")]
    arguments += ["--device", "cpu", "--rates", "50", "--seconds", "0.1", "--batch", "1,2"]
    files = ["--csv", str(tmp_path / "rates.csv"), "--plot", str(tmp_path / "rates.png")]
    result = CliRunner().invoke(main, [*arguments, *files])
    assert result.exit_code == 0, result.output
    head, *lines = (tmp_path / "rates.csv").read_text().splitlines()
    assert head == "batch,rate,macs,conditional_ms,masked_ms,line_ms,over_line"
    assert [line.split(",")[:2] for line in lines] == [[n, r] for n in ("1", "2") for r in ("0.0", "0.5", "1.0")]
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")
    result = CliRunner().invoke(main, [*arguments, "--profile"])
    assert result.exit_code == 2
    assert "--profile with --rates: nodes are not profiled at driven rates. Leave one out." in result.stderr


def test_a_model_for_a_batch_of_one_is_not_timed_at_two(tmp_path: Path) -> None:
    conditional_file(tmp_path / "model.onnx", residual(batch=1))
    with pytest.raises(InputError) as caught:
        sweep_rates(tmp_path / "model.onnx", batches=[2], seconds=0.0)
    assert str(caught.value) == (
        f"{tmp_path / 'model.onnx'}: batch 2: its inputs have the fixed first dimension 1. Export the model with a "
        "dynamic batch, or bench that size."
    )


def test_a_model_without_blocks_has_no_rate(tmp_path: Path) -> None:
    conditional_file(tmp_path / "model.onnx", residual())
    path = tmp_path / "masked_model.onnx"
    with pytest.raises(UnsupportedModelError) as caught:
        sweep_rates(path)
    assert str(caught.value) == f"{path}: has no conditional blocks, so there is no rate to sweep."


@pytest.mark.parametrize("text", ["", "a", "0,120", "-5"])
def test_rates_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_rates(text)
    assert str(caught.value) == f"--rates {text}: expected per cent from 0 to 100, such as 0,25,50,75,100."


def test_rates_are_per_cent() -> None:
    assert parse_rates("0, 12.5,100%") == [0.0, 0.125, 1.0]
