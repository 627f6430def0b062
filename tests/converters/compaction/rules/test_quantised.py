"""How much goes from quantised graphs, and are the integers that stay the ones that were there?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from cases import CASES
from judge import run_onnxruntime

from converters.compaction import compact
from converters.compaction.rules import quantised


def both(name: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The model of a case and its compact form."""
    before = CASES[name].model()
    return before, ir.to_proto(compact(ir.from_proto(CASES[name].model())).model)


def stored(model: onnx.ModelProto) -> list[tuple[str, tuple[int, ...]]]:
    """Type and shape of every initializer with more than 6 entries, sorted."""
    found = [(onnx.TensorProto.DataType.Name(t.data_type), tuple(t.dims)) for t in model.graph.initializer]
    return sorted((kind, dims) for kind, dims in found if int(np.prod(dims)) > 6)


def difference(name: str) -> float:
    """Largest difference in onnxruntime; 0 where the same integers are added."""
    before, after = both(name)
    worst = 0.0
    for which in (0, 1):
        feeds = CASES[name].inputs(before, which)
        pairs = zip(run_onnxruntime(before, feeds), run_onnxruntime(after, feeds), strict=True)
        worst = max([worst, *(float(np.abs(a - b).max()) for a, b in pairs)])
    return worst


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "quantised_convolutions_with_scales_and_zero_points_per_channel",
            [("INT8", (5, 5, 3, 3)), ("INT8", (5, 3, 3, 3))],
        ),
        ("quantised_convolutions_with_one_scale", [("INT8", (5, 5, 3, 3)), ("INT8", (5, 3, 3, 3))]),
        ("weights_quantised_on_loading", [("FLOAT", (5, 6)), ("INT8", (5, 3))]),
        ("dynamic_quantisation_and_integer_product", [("FLOAT", (5, 6)), ("INT8", (5, 3))]),
        ("integer_convolutions", [("UINT8", (5, 5, 3, 3)), ("UINT8", (5, 3, 3, 3))]),
        (
            "quantised_operators_with_closed_filters",
            [("INT8", (3, 5, 3, 3)), ("INT8", (5, 3, 3, 3)), ("INT8", (48, 3))],
        ),
    ],
)
def test_closed_filters_go_and_integers_stay_integers(name: str, expected: list[tuple[str, tuple[int, ...]]]) -> None:
    assert stored(both(name)[1]) == sorted(expected)
    assert difference(name) == 0.0


@pytest.mark.parametrize(
    "name",
    [
        "quantised_convolutions_whose_closed_filters_have_a_bias",
        "quantised_operators_whose_closed_filters_have_a_bias",
        "dynamic_quantisation_of_features_that_nobody_reads",
        "constants_in_front_of_a_quantised_padded_convolution",
    ],
)
def test_what_cannot_be_proved_stays_quantised_as_it_was(name: str) -> None:
    before, after = both(name)
    assert [item for item in stored(after) if item[0] != "FLOAT"] == [
        item for item in stored(before) if item[0] != "FLOAT"
    ]
    assert difference(name) < 1e-6  # a folded gate rounds anew


def test_operators_of_a_quantised_graph_stay_in_place() -> None:
    before, after = both("quantised_convolutions_with_one_scale")
    assert sorted(n.op_type for n in before.graph.node) == sorted(n.op_type for n in after.graph.node)


def operators_run(model: onnx.ModelProto, path: Path) -> list[str]:
    """What onnxruntime makes of the model before it runs it."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return sorted(node.op_type for node in onnx.load(path).graph.node)


def test_onnxruntime_fuses_the_compact_graph_as_it_does_the_gated_one(tmp_path: Path) -> None:
    before, after = both("quantised_convolutions_with_one_scale")
    assert operators_run(after, tmp_path / "after.onnx") == operators_run(before, tmp_path / "before.onnx")


def test_a_range_that_forgets_what_nobody_reads_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "dynamic_quantisation_of_features_that_nobody_reads"
    monkeypatch.setattr(quantised.WholeRange, "require", quantised.Tie.require)
    monkeypatch.setattr(quantised.WholeRange, "shrink", quantised.Tie.shrink)
    assert difference(name) > 1e-3


def test_a_bias_that_is_forgotten_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = quantised._silent_rows
    monkeypatch.setattr(quantised, "_silent_rows", lambda node, silent, bias: original(node, silent, None))
    assert difference("quantised_operators_whose_closed_filters_have_a_bias") > 1e-3


def test_a_zero_point_that_is_taken_for_zero_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def nonzero(data, zero):
        return lambda facts: np.ones(data.size, bool)

    monkeypatch.setattr(quantised, "_equal_to_zero_point", nonzero)
    assert difference("quantised_operators_whose_closed_filters_have_a_bias") > 1e-3
