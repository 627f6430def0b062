"""A Triton repository says what the model is; the twin computes what the model does; a real tritonserver serves it."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from running_server import W, write_model

from l0runtime.errors import OptionError, UnsupportedModelError
from l0runtime.serving.triton import export_triton, triton_config
from l0runtime.session import TensorSpec

ENVIRONMENT = "L0RUNTIME_TRITON_ENVIRONMENT"


def test_the_repository_holds_the_model_and_its_configuration(tmp_path: Path) -> None:
    model = write_model(tmp_path / "linear.onnx", "linear")
    written = export_triton(model, tmp_path / "repo", device="cpu", max_batch=16, queue_delay_us=50, threads=1)
    assert written.folder == tmp_path / "repo" / "linear"
    assert (written.max_batch, written.not_merged) == (16, None)
    found = sorted(
        str(path.relative_to(tmp_path / "repo")) for path in (tmp_path / "repo").rglob("*") if path.is_file()
    )
    assert found == ["linear/1/model.onnx", "linear/config.pbtxt"]
    assert (written.folder / "1" / "model.onnx").read_bytes() == model.read_bytes()
    assert (written.folder / "config.pbtxt").read_text() == (
        'name: "linear"\nbackend: "onnxruntime"\nmax_batch_size: 16\n'
        'input [\n  {\n    name: "x"\n    data_type: TYPE_FP32\n    dims: [ 3 ]\n  }\n]\n'
        'output [\n  {\n    name: "y"\n    data_type: TYPE_FP32\n    dims: [ 2 ]\n  }\n]\n'
        "instance_group [\n  {\n    count: 1\n    kind: KIND_CPU\n  }\n]\n"
        "dynamic_batching {\n  max_queue_delay_microseconds: 50\n}\n"
        'parameters {\n  key: "intra_op_thread_count"\n  value { string_value: "1" }\n}\n'
        'model_warmup {\n  name: "rows_1"\n  batch_size: 1\n  inputs {\n    key: "x"\n    value {\n'
        "      data_type: TYPE_FP32\n      dims: [ 3 ]\n      zero_data: true\n    }\n  }\n}\n"
        'model_warmup {\n  name: "rows_16"\n  batch_size: 16\n  inputs {\n    key: "x"\n    value {\n'
        "      data_type: TYPE_FP32\n      dims: [ 3 ]\n      zero_data: true\n    }\n  }\n}\n"
    )


def test_a_model_whose_rows_mix_is_not_merged(tmp_path: Path) -> None:
    written = export_triton(write_model(tmp_path / "m.onnx", "mixing"), tmp_path / "repo", device="cpu")
    assert written.max_batch == 0
    assert written.not_merged is not None
    text = (written.folder / "config.pbtxt").read_text()
    assert "max_batch_size: 0" in text
    assert "dims: [ -1, 2 ]" in text
    assert "dynamic_batching" not in text


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_triton_s_own_reader_takes_every_configuration(backend: Any) -> None:
    text_format = pytest.importorskip("google.protobuf.text_format")
    model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed")
    inputs = (
        TensorSpec("a", "int64", ("N", "L", 3)),
        TensorSpec("b", "bool", ("N",)),
    )
    outputs = (TensorSpec("y", "float16", ("N", 4)),)
    for max_batch in (0, 8):
        text = triton_config(
            "m", backend, inputs, outputs, max_batch=max_batch, instances=2, gpu=True, threads=3, queue_delay_us=9
        )
        found = text_format.Parse(text, model_config.ModelConfig())
        assert (found.name, found.backend, found.max_batch_size) == ("m", backend, max_batch)
        assert [list(one.dims) for one in found.input] == ([[-1, 3], [1]] if max_batch else [[-1, -1, 3], [-1]])
        assert found.input[1].HasField("reshape") == bool(max_batch)
        assert found.input[0].data_type == model_config.TYPE_INT64
        assert found.output[0].data_type == model_config.TYPE_FP16
        assert found.instance_group[0].count == 2
        assert found.instance_group[0].kind == model_config.ModelInstanceGroup.KIND_GPU
        assert found.HasField("dynamic_batching") == bool(max_batch)
        assert not found.model_warmup  # a dimension besides the rows is dynamic


def test_weights_beside_the_model_come_along(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "m.onnx"
    model = onnx.load(write_model(path, "linear"))
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(W, "w"))  # raw data is what can be moved out
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    written = export_triton(path, tmp_path / "repo", device="cpu")
    assert (written.folder / "1" / "m.data").read_bytes() == (tmp_path / "a" / "m.data").read_bytes()


def test_what_cannot_be_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    model = write_model(tmp_path / "linear.onnx", "linear")
    half = write_model(tmp_path / "half.onnx", "g (bfloat16[N] x) => (bfloat16[N] y) { y = Identity (x) }")
    for error, message, arguments in (
        (OptionError, "version = 0: expected at least 1.", {"version": 0}),
        (OptionError, "model name 'a/b': expected the name of a folder.", {"name": "a/b"}),
        (OptionError, "queue_delay_us = -1: expected at least 0.", {"queue_delay_us": -1}),
        (UnsupportedModelError, "'x' is bfloat16, for which no Triton has been tried.", {"model": half}),
    ):
        with pytest.raises(error, match=message):
            export_triton(**({"model": model, "repository": tmp_path / "repo", "device": "cpu"} | arguments))  # type: ignore[arg-type]
    assert not list((tmp_path / "repo").rglob("*"))
    export_triton(model, tmp_path / "repo", device="cpu")
    with pytest.raises(OptionError, match=r"exists already\. Choose another version, or remove it\.$"):
        export_triton(model, tmp_path / "repo", device="cpu")
    export_triton(model, tmp_path / "repo", device="cpu", version=2)
    assert sorted(path.name for path in (tmp_path / "repo" / "linear").iterdir()) == ["1", "2", "config.pbtxt"]


class _Tensor:
    def __init__(self, name: str, array: Any) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> Any:
        return self.array


class _Response:
    def __init__(self, tensors: Any = (), error: Any = None) -> None:
        self.tensors, self.error = tensors, error


def twin(folder: Path) -> Any:
    """The written model.py, with the module that Triton lends it stood in for."""
    lent: Any = types.ModuleType("triton_python_backend_utils")
    lent.get_input_tensor_by_name = lambda request, name: request[name]
    lent.Tensor, lent.InferenceResponse, lent.TritonError = _Tensor, _Response, RuntimeError
    space: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", lent)
        exec(compile((folder / "1" / "model.py").read_text(), "model.py", "exec"), space)
    made = space["TritonPythonModel"]()
    made.initialize({"model_repository": str(folder), "model_version": "1"})
    return made


def test_the_python_twin_runs_requests_together_and_keeps_them_apart(tmp_path: Path) -> None:
    model = write_model(tmp_path / "linear.onnx", "linear")
    made = twin(export_triton(model, tmp_path / "repo", device="cpu", backend="python").folder)
    arrays = [np.full((1 + i % 2, 3), i, np.float32) for i in range(5)]
    found = made.execute([{"x": _Tensor("x", array)} for array in arrays])
    for array, response in zip(arrays, found, strict=True):
        assert response.tensors[0].name == "y"
        assert np.array_equal(response.tensors[0].array, array @ W)


def test_the_python_twin_answers_a_failed_run_with_an_error(tmp_path: Path) -> None:
    made = twin(
        export_triton(
            write_model(tmp_path / "t.onnx", "table"), tmp_path / "repo", device="cpu", backend="python"
        ).folder
    )
    (found,) = made.execute([{"i": _Tensor("i", np.array([99]))}])
    assert "out of" in str(found.error)


def test_a_real_tritonserver_gives_equal_outputs_and_merges_requests(tmp_path: Path) -> None:
    environment = os.environ.get(ENVIRONMENT)
    if not environment:
        pytest.skip(
            f"set {ENVIRONMENT} to a virtual environment with nvidia-pytriton; see benchmarks/serving/README.md"
        )
    from benchmarks.serving.triton_proof import prove

    result = prove(Path(environment), tmp_path, clients=16, seconds=2.0)
    assert result["answered"] > 0
    assert (result["wrong"], result["lost"]) == (0, 0)
    assert sum(count for size, count in result["runs_by_batch_size"].items() if int(size) > 1) > 0
