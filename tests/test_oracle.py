"""Is the oracle right: does it agree with onnxruntime on every case, and does it compute in float64?"""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import onnx
import pytest
from cases import CASES
from cases.table import model, tensor
from judge import run_onnxruntime
from oracle import evaluate, relative_difference, upcast


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.no_onnxruntime])
def test_oracle_agrees_with_onnxruntime(name: str) -> None:
    case = CASES[name]
    original = case.model()
    for which in (0, 1):
        feeds = case.inputs(original, which)
        assert relative_difference(evaluate(original, feeds), run_onnxruntime(original, feeds)) <= case.tolerance


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.no_onnxruntime != "no number"])
def test_case_is_not_degenerate(name: str) -> None:
    """A case whose outputs ignore the input could not tell a right compaction from a wrong one."""
    case = CASES[name]
    original = case.model()
    first, second = (evaluate(original, case.inputs(original, 1, draw)) for draw in (0, 1))
    assert all(np.isfinite(output).all() for output in first)
    assert (relative_difference(first, second) < 1e-5) == case.constant_output


@pytest.mark.parametrize("name", CASES)
def test_float64_twin_has_no_other_floating_point_type(name: str) -> None:
    twin = upcast(CASES[name].model())
    if any(node.op_type == "Resize" for node in twin.graph.node):
        return  # its scales are float32 by definition
    text = onnx.printer.to_text(twin)
    assert not any(f"{narrow}[" in text for narrow in ("float", "float16", "bfloat16"))


def test_oracle_keeps_digits_that_float32_loses() -> None:
    proto = model("(float[2] x) => (float[2] y) { s = Add(x, big)\n y = Sub(s, big) }", big=[1e8, 1e8])
    (y,) = evaluate(proto, {"x": np.array([0.25, -0.125], np.float32)})
    assert y.tolist() == [0.25, -0.125]
    (y,) = evaluate(proto, {"x": np.array([0.25, -0.125], np.float32)}, dtype=np.float32)
    assert y.tolist() == [0.0, 0.0]


def test_oracle_leaves_the_model_as_it_was() -> None:
    original = CASES["weights_in_float16"].model()
    before = original.SerializeToString()
    evaluate(original, CASES["weights_in_float16"].inputs(original, 0))
    assert original.SerializeToString() == before


def test_convolution_by_hand() -> None:
    proto = model("(double[1,1,3] x) => (double[1,1,3] y) { y = Conv<pads=[1,1]>(x, w, b) }")
    proto.graph.initializer.append(tensor(np.array([[[1.0, 10.0, 100.0]]]), "w"))
    proto.graph.initializer.append(tensor(np.array([1000.0]), "b"))
    (y,) = evaluate(proto, {"x": np.array([[[1.0, 2.0, 3.0]]])})
    assert y.tolist() == [[[1210.0, 1321.0, 1032.0]]]


@pytest.mark.parametrize(
    ("expected", "found", "difference"),
    [
        ([2.0, -4.0], [2.0, -3.0], 0.25),
        ([0.0, 0.0], [0.0, 0.5], 0.5),
        ([1.0, np.inf], [1.0, np.inf], 0.0),
        ([1.0, np.inf], [1.0, -np.inf], np.inf),
        ([1.0, 2.0], [1.0, np.nan], np.inf),
        ([1.0, 2.0], [1.0, 2.0, 3.0], np.inf),
        ([[1.0]], [1.0], np.inf),
    ],
)
def test_relative_difference_by_hand(expected: list[float], found: list[float], difference: float) -> None:
    assert relative_difference([np.array(expected)], [np.array(found)]) == difference


def test_integers_are_equal_or_infinitely_far_apart() -> None:
    assert relative_difference([np.array([1, 2])], [np.array([1, 2])]) == 0
    assert relative_difference([np.array([1, 2])], [np.array([1, 3])]) == float("inf")


def test_number_of_outputs_counts() -> None:
    assert relative_difference([np.zeros(1)], []) == float("inf")


def test_oracle_imports_nothing_that_it_judges() -> None:
    for file in (Path(__file__).parent / "oracle").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] in ("converters", "l0runtime") for n in names), file
