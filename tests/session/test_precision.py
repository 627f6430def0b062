"""A precision is chosen on purpose: float32 in and out, and what would change a model's weights unasked is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import l0runtime
from l0runtime.errors import OptionError, UnsupportedModelError
from l0runtime.session import precision

W = np.array([[1, 2], [3, 4], [5, 6]])
X = np.array([[1, 0, 0.5], [1, 1, -1]], np.float32)
Y = X.astype(np.float64) @ W


def linear(dtype: Any, weight: np.ndarray = W, **names: str) -> onnx.ModelProto:
    """y = x W, all of one type."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x, y = names.get("x", "x"), names.get("y", "y")
    graph = helper.make_graph(
        [helper.make_node("MatMul", [x, "w"], [y], "matmul")],
        "g",
        [helper.make_tensor_value_info(x, element, ["N", 3])],
        [helper.make_tensor_value_info(y, element, ["N", 2])],
        [numpy_helper.from_array(np.asarray(weight).astype(dtype), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def load(model: onnx.ModelProto, chosen: str | None) -> l0runtime.Session:
    return l0runtime.load(model.SerializeToString(), device="cpu", precision=chosen)  # type: ignore[arg-type]


def test_a_float16_model_takes_and_gives_float32_where_that_is_asked_for() -> None:
    session = load(linear(np.float16), "float16")
    assert [spec.dtype for spec in (*session.inputs, *session.outputs)] == ["float32", "float32"]
    result = session(X)
    assert result.dtype == np.float32
    assert result.tolist() == Y.tolist()  # small integers and halves are exact in float16


def test_without_a_precision_a_model_is_taken_as_it_is_stored() -> None:
    session = load(linear(np.float16), None)
    assert session.inputs[0].dtype == "float16"
    assert session(X.astype(np.float16)).dtype == np.float16


def test_a_float32_model_is_rounded_to_float16() -> None:
    # 1 + 2^-12 is no float16: it becomes 1, and the sum of three of them 3
    model = linear(np.float32, np.full((3, 2), 1 + 2**-12))
    ones = np.ones((1, 3), np.float32)
    assert load(model, "float32")(ones).tolist() == [[3 + 3 * 2**-12] * 2]
    assert load(model, "float16")(ones).tolist() == [[3.0, 3.0]]
    assert [spec.dtype for spec in load(model, "float16").inputs] == ["float32"]


def test_weights_that_are_too_small_for_float16_become_zero_as_rounding_says() -> None:
    model = linear(np.float32, np.full((3, 2), 1e-9))
    assert load(model, "float16")(np.ones((1, 3), np.float32)).tolist() == [[0.0, 0.0]]


def test_weights_that_are_too_large_for_float16_are_refused() -> None:
    with pytest.raises(UnsupportedModelError) as raised:
        load(linear(np.float32, np.full((3, 2), -1e5)), "float16")
    assert str(raised.value) == ("model: weight 'w' holds 100000, float16 ends at 65504. Run the model in float32.")


def test_a_model_in_its_own_precision_is_not_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(linear(np.float32), path)
    assert precision.with_precision(path, "float32", "model") is path


@pytest.mark.parametrize(
    ("stored", "name", "chosen"),
    [
        (np.float32, "float32", "bfloat16"),
        (np.float16, "float16", "float32"),
        (np.float16, "float16", "bfloat16"),
        (ml_dtypes.bfloat16, "bfloat16", "float32"),
        (ml_dtypes.bfloat16, "bfloat16", "float16"),
        (np.float64, "float64", "float16"),
    ],
)
def test_other_conversions_are_refused(stored: Any, name: str, chosen: str) -> None:
    with pytest.raises(UnsupportedModelError) as raised:
        load(linear(stored), chosen)
    assert str(raised.value) == (
        f"model: holds {name} weights and cannot run in {chosen}. Load it as stored (precision=None), or convert the "
        f"trained model to {chosen} before it is exported."
    )


def test_a_bfloat16_model_gets_casts_around_it() -> None:
    # onnxruntime has no bfloat16 MatMul on the CPU, so the rewritten graph is judged by itself
    made = precision.with_precision(linear(ml_dtypes.bfloat16).SerializeToString(), "bfloat16", "model")
    assert isinstance(made, bytes)
    model = onnx.load_from_string(made)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Cast", "MatMul", "Cast"]
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    (found,) = ReferenceEvaluator(model).run(None, {"x": X})
    assert found.astype(np.float64).tolist() == Y.tolist()


def test_casts_do_not_take_a_name_that_is_in_use() -> None:
    assert load(linear(np.float16, x="y_float16"), "float16")(X).tolist() == Y.tolist()


def test_an_output_that_another_node_reads_is_cast_once() -> None:
    model = linear(np.float16)
    model.graph.node.append(helper.make_node("Relu", ["y"], ["r"], "relu"))
    model.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT16, ["N", 2]))
    y, r = load(model, "float16")(X)
    assert (y.tolist(), r.tolist()) == (Y.tolist(), np.maximum(Y, 0).tolist())
    assert (y.dtype, r.dtype) == (np.float32, np.float32)


def test_an_input_that_a_loop_body_reads_is_cast_too() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float16[2] x, bool c) => (float16[2] y) {
        y = If (c) <then_branch = t () => (float16[2] a) { a = Mul (x, w) },
                    else_branch = e () => (float16[2] b) { b = Neg (x) }>
    }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3], np.float16), "w"))
    session = load(model, "float16")
    x = np.array([1, -1], np.float32)
    assert session.run({"x": x, "c": np.array(True)})["y"].tolist() == [2, -3]
    assert session.run({"x": x, "c": np.array(False)})["y"].tolist() == [-1, 1]


def test_mixed_weights_are_refused() -> None:
    model = linear(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float16), "h"))
    with pytest.raises(UnsupportedModelError, match=r"^model: holds float16 and float32 weights; a precision can only"):
        load(model, "float16")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(OptionError) as raised:
        load(linear(np.float32), "fp16")
    assert str(raised.value) == "precision 'fp16': expected float32, float16, bfloat16, or None as stored."
