"""A comparison gives the verdict that its models deserve, with everything that is needed to judge it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

import l0runtime
from l0runtime.errors import InputError, OptionError, UnsupportedModelError, VerificationError
from l0runtime.measurement import Verdict


def test_a_model_of_a_fraction_of_the_work_is_faster_and_the_reverse_is_not(wide: Path, narrow: Path) -> None:
    # 2,500 times less arithmetic at batch 64: far beyond any noise, so no timing is tested here
    report = l0runtime.bench(narrow, wide, batch=64, device="cpu", margin=0.1, budget_seconds=0.2, footprint=False)
    assert report.verdict is Verdict.FASTER
    reverse = l0runtime.bench(wide, narrow, batch=64, device="cpu", margin=0.1, budget_seconds=0.2, footprint=False)
    assert reverse.verdict is Verdict.NOT_FASTER
    assert reverse.results[0].speed_up.high < 1


def test_a_model_against_itself_within_a_huge_margin_is_inconclusive(narrow: Path) -> None:
    report = l0runtime.bench(narrow, narrow, device="cpu", margin=0.99, budget_seconds=0.1, footprint=False)
    assert report.verdict is Verdict.INCONCLUSIVE


def test_the_report_holds_conditions_cost_footprint_and_raw_samples(wide: Path, narrow: Path) -> None:
    report = l0runtime.bench(narrow, wide, batch=[2, 4], device="cpu", budget_seconds=0.1, seed=5)
    data = json.loads(json.dumps(report.to_dict()))
    assert (data["device"], data["threads"], data["seed"]) == ("cpu", 1, 5)
    assert data["baseline"]["parameters"] == 16 * 20_000 + 20_000 * 4
    assert data["candidate"]["parameters"] == 16 * 8 + 8 * 4
    assert data["candidate"]["file_bytes"] == narrow.stat().st_size
    assert data["baseline"]["footprint"]["load_ms"] > 0
    first, second = data["results"]
    assert (first["batch"], first["shapes"]) == (2, {"x": [2, 16]})
    assert second["candidate"]["macs"] == 4 * (16 * 8 + 8 * 4)
    assert first["agreement"]["difference"] <= first["agreement"]["limit"]
    plan = first["measurement"]["plan"]
    latencies = first["measurement"]["latency_ms"]["candidate"]
    assert (len(latencies), len(latencies[0]), len(latencies[0][0])) == (6, plan["blocks"], plan["calls"])
    assert sorted(map(tuple, first["measurement"]["creation_order"]))[0] == ("baseline", "candidate", "control")
    lines = report.to_csv().splitlines()
    assert lines[0].startswith("batch,model,p50_ms,p90_ms,p99_ms,items_per_second,macs,parameters,speed_up")
    assert [line.split(",")[:2] for line in lines[1:]] == [
        [batch, str(path)] for batch in ("2", "4") for path in (wide, narrow)
    ]


def test_a_printed_report_is_the_table_and_the_reasons_not_the_samples(narrow: Path) -> None:
    report = l0runtime.bench(narrow, narrow, device="cpu", margin=0.99, budget_seconds=0.1, footprint=False)
    text = str(report)
    assert text.endswith(report.results[0].reason)
    assert "speed-up [95 % CI]" in text
    assert len(text.splitlines()) < 30


def test_one_slower_batch_size_spoils_the_overall_verdict(wide: Path, narrow: Path) -> None:
    from dataclasses import replace

    report = l0runtime.bench(narrow, wide, device="cpu", budget_seconds=0.1, footprint=False)
    (result,) = report.results

    def overall(*verdicts: Verdict) -> Verdict:
        return replace(report, results=tuple(replace(result, verdict=verdict) for verdict in verdicts)).verdict

    assert overall(Verdict.FASTER, Verdict.FASTER) is Verdict.FASTER
    assert overall(Verdict.FASTER, Verdict.INCONCLUSIVE) is Verdict.INCONCLUSIVE
    assert overall(Verdict.FASTER, Verdict.INCONCLUSIVE, Verdict.NOT_FASTER) is Verdict.NOT_FASTER


def test_models_that_differ_are_not_timed(wide: Path, other: Path) -> None:
    with pytest.raises(VerificationError, match="their times are not compared"):
        l0runtime.bench(other, wide, device="cpu")


def test_another_precision_is_refused(narrow: Path, tmp_path: Path) -> None:
    model = onnx.load(narrow)
    half = onnx.helper.make_model(model.graph, opset_imports=model.opset_import, ir_version=8)
    for tensor in half.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).astype("float16")
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    half.graph.node.insert(0, onnx.helper.make_node("Cast", ["x"], ["x16"], to=onnx.TensorProto.FLOAT16))
    half.graph.node[1].input[0] = "x16"
    half.graph.node[3].output[0] = "y16"
    half.graph.node.append(onnx.helper.make_node("Cast", ["y16"], ["y"], to=onnx.TensorProto.FLOAT))
    path = tmp_path / "half.onnx"
    onnx.save(half, path)
    with pytest.raises(UnsupportedModelError) as caught:
        l0runtime.bench(path, narrow, device="cpu")
    assert str(caught.value) == (
        f"{path}: holds FLOAT16 weights, {narrow} holds FLOAT: a comparison needs equal precision. "
        "Convert one of them first."
    )


def test_a_fixed_batch_is_not_silently_kept(narrow: Path, tmp_path: Path) -> None:
    model = onnx.load(narrow)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    path = tmp_path / "fixed.onnx"
    onnx.save(model, path)
    with pytest.raises(InputError) as caught:
        l0runtime.bench(path, path, batch=8, device="cpu")
    assert str(caught.value) == (
        f"{path}: batch 8: input 'x' has the fixed first dimension 1. "
        "Export the model with a dynamic batch, or bench that size."
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch [0]: expected one or more sizes of at least 1."),
        ({"batch": []}, "batch []: expected one or more sizes of at least 1."),
        ({"margin": 2}, "margin 2: expected a fraction from 0 to below 1, such as 0.02 for 2 %."),
        ({"budget_seconds": 0}, "budget 0 s: expected more than 0."),
    ],
)
def test_options_without_a_meaning_are_refused(narrow: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        l0runtime.bench(narrow, narrow, device="cpu", **options)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_a_batch_size_that_a_given_shape_does_not_have_is_refused(narrow: Path) -> None:
    with pytest.raises(InputError) as caught:
        l0runtime.bench(narrow, narrow, batch=[1, 8], shapes={"x": (1, 16)}, device="cpu")
    assert str(caught.value) == (
        f"{narrow}: batch 8: the shape given for input 'x', [1, 16], has 1 first. "
        "Give the batch size that the shapes have, or leave the shape out."
    )
