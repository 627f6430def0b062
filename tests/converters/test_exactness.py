"""The float64 twin must be equal, and the shipped model its rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_models import change_weight, make_mlp

from converters.compaction import compact
from converters.exactness import LIMIT, Exactness, check_exactly

FEED = [("x 2x5", {"x": np.random.default_rng(1).standard_normal((2, 5)).astype(np.float32)})]


@pytest.fixture
def compacted(mlp: Path, tmp_path: Path) -> Path:
    path = tmp_path / "compact.onnx"
    ir.save(compact(ir.load(mlp)).model, path)
    return path


def check(gated: Path, shipped: Path) -> Exactness:
    found = check_exactly(gated, shipped, FEED)
    assert isinstance(found, Exactness), found
    return found


def test_a_sound_compaction_is_exact_to_1e_10(mlp: Path, compacted: Path) -> None:
    found = check(mlp, compacted)
    assert LIMIT == 1e-10
    assert found.difference.relative <= LIMIT
    assert found.misrounded is None


def test_the_gated_outputs_equal_the_formula_in_float64(mlp: Path, compacted: Path) -> None:
    arrays = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in make_mlp().graph.initializer}
    x = FEED[0][1]["x"].astype(np.float64)
    hidden = np.maximum(arrays["gate"] * (x @ arrays["fc1.weight"].T + arrays["fc1.bias"]), 0)
    expected = hidden @ arrays["fc2.weight"].T + arrays["fc2.bias"]
    ((found,),) = check(mlp, compacted).gated_outputs
    np.testing.assert_allclose(found, expected, rtol=1e-13)  # sums of 6 float64 products in another order


def test_a_weight_off_by_more_than_rounding_is_named(mlp: Path, compacted: Path, tmp_path: Path) -> None:
    def shift(array: np.ndarray) -> None:
        array.flat[0] += 1e-5 * np.abs(array).max()

    path = tmp_path / "wrong.onnx"
    onnx.save(change_weight(onnx.load(compacted), "fc2.weight", shift), path)
    found = check(mlp, path).misrounded
    assert found is not None
    assert found[0] == "fc2.weight"
    assert " at [0, 0], expected " in found[1]


def test_another_structure_is_reported_as_such_and_judged_by_its_function(mlp: Path) -> None:
    found = check(mlp, mlp)
    assert found.misrounded == ("", "it has 4 operators, its float64 twin 3, or others")
    assert found.shipped.relative == 0


def test_what_the_reference_cannot_evaluate_is_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "odd.onnx"
    text = '<ir_version: 9, opset_import: ["": 18, "odd": 1]> g (float[2] x) => (float[2] y) { y = odd.Odd(x) }'
    onnx.save(onnx.parser.parse_model(text), path)
    assert check_exactly(path, path, []) == "odd::Odd has no float64 reference"


def test_integers_that_lie_in_a_data_file_are_read(tmp_path: Path) -> None:
    body = "g (float[2, 5] x) => (float[2, 300] y) { y = Gather<axis = 1>(x, at) }"
    model = onnx.parser.parse_model('<ir_version: 9, opset_import: ["": 18]> ' + body)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(300) % 5, "at"))
    path = tmp_path / "table.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="table.data", size_threshold=0)
    assert check(path, path).difference.relative == 0
