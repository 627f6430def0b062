"""Models are compared on several batch sizes and, where they may vary, on several sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from converters.batches import make_batches, shapes_of_one
from l0runtime.errors import InputError, UnsupportedModelError


def parse(tmp_path: Path, signature: str, body: str) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 18]> g ({signature}) {body}'), path)
    return path


def names(path: Path, example: dict[str, np.ndarray] | None = None) -> list[str]:
    return [batch.name for batch in make_batches(path, example=example)]


def test_small_models_get_batches_of_32_one_and_18_signed_examples(mlp: Path) -> None:
    batches = make_batches(mlp)
    assert [batch.name for batch in batches] == ["x 32x5", "x 1x5", "x 18x5"]
    assert all((batch.feed["x"] < 0).any() and (batch.feed["x"] > 0).any() for batch in batches)


def test_image_sizes_change_by_different_steps_in_the_second_batch(tmp_path: Path) -> None:
    path = parse(tmp_path, "float[N,1,H,W] x) => (float[N,1,H,W] y", "{ y = Relu(x) }")
    assert names(path) == ["x 32x1x64x64", "x 1x1x71x78", "x 18x1x64x64"]


def test_sizes_follow_the_example_which_comes_first(tmp_path: Path) -> None:
    path = parse(tmp_path, "float[N,1,H,W] x) => (float[N,1,H,W] y", "{ y = Relu(x) }")
    example = {"x": np.ones((4, 1, 8, 9), np.float32)}
    assert names(path, example) == ["x 4x1x8x9", "x 32x1x8x9", "x 1x1x15x23", "x 18x1x8x9"]


def test_the_first_usual_size_is_taken_on_which_the_model_runs(tmp_path: Path) -> None:
    # an addition of 28 columns refuses every other width, but for one that broadcasts
    body = "<float[28] w = {" + ", ".join(["0"] * 28) + "}> { y = Add(x, w) }"
    assert names(parse(tmp_path, "float[N,1,28,W] x) => (float[N,1,28,W] y", body))[0] == "x 32x1x28x28"


def test_large_models_get_two_examples(tmp_path: Path) -> None:
    body = "<float[1000,1000] w> { a = MatMul(x, w) y = MatMul(a, w) }"
    path = parse(tmp_path, "float[N,1000,1000] x) => (float[N,1000,1000] y", body.replace("<float[1000,1000] w> ", ""))
    model = onnx.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((1000, 1000), np.float32), "w"))
    onnx.save(model, path)
    assert names(path) == ["x 2x1000x1000", "x 1x1000x1000", "x 3x1000x1000"]


def test_a_static_model_keeps_its_sizes(tmp_path: Path) -> None:
    path = parse(tmp_path, "float[2,3] x) => (float[2,3] y", "{ y = Relu(x) }")
    assert names(path) == ["x 2x3", "x 2x3", "x 2x3"]
    first, second, _ = make_batches(path)
    assert (first.feed["x"] != second.feed["x"]).any()


def test_given_inputs_are_used_as_they_are(mlp: Path) -> None:
    (batch,) = make_batches(mlp, [{"x": np.zeros((7, 5), np.float32)}])
    assert batch.name == "x 7x5"


def test_given_inputs_that_do_not_fit_are_refused(mlp: Path) -> None:
    with pytest.raises(InputError, match=r"the gated model does not run on the inputs given, x 7x4 \(.*"):
        make_batches(mlp, [{"x": np.zeros((7, 4), np.float32)}])


def test_a_model_that_never_runs_is_refused(tmp_path: Path) -> None:
    path = parse(
        tmp_path,
        "float[N,A] x) => (float[M,5003] y",
        "<int64[2] s = {-1, 5003}> { y = Reshape(x, s) }",  # no usual size is a multiple of 5003
    )
    with pytest.raises(UnsupportedModelError, match=r"runs with none of the usual sizes \(64, 32, .* axes A \("):
        make_batches(path, example=None)


def test_integers_that_index_nothing_stay_in_the_range_of_the_example(tmp_path: Path) -> None:
    path = parse(tmp_path, "int64[N,3] x) => (int64[N,3] y", "{ y = Neg(x) }")
    batches = make_batches(path, example={"x": np.array([[0, 7, 2]])})
    values = np.concatenate([batch.feed["x"].ravel() for batch in batches[1:]])
    assert 2 <= values.max() <= 7


def test_shapes_of_one_example_have_a_batch_of_one_where_it_may_vary(mlp: Path, tmp_path: Path) -> None:
    assert shapes_of_one(mlp, {"x": np.zeros((4, 5))}) == {"x": (1, 5)}
    static = parse(tmp_path, "float[2,3] x) => (float[2,3] y", "{ y = Relu(x) }")
    assert shapes_of_one(static, {"x": np.zeros((2, 3))}) == {"x": (2, 3)}
