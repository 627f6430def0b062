"""Loading fails closed: a device, a file or an option that is not what was asked for raises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conditional_graphs import conditional_file, residual

import l0runtime
from l0runtime.errors import DeviceError, ModelFileError, OptionError, UnsupportedModelError
from l0runtime.session.devices import Device, library_problem, memory_options

SaveModel = Callable[..., Path]
no_cuda = pytest.mark.skipif(library_problem(Device("cuda")) is None, reason="CUDA works here")


@no_cuda
@pytest.mark.parametrize("options", [{}, {"allow_cpu_nodes": True}])
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "tensorrt"])
def test_a_gpu_that_is_absent_raises_even_where_cpu_nodes_are_allowed(
    save_model: SaveModel, device: str, options: dict[str, bool]
) -> None:
    with pytest.raises(DeviceError) as caught:
        l0runtime.load(save_model("linear"), device=device, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    provider = "TensorrtExecutionProvider" if device == "tensorrt" else "CUDAExecutionProvider"
    shown = device if ":" in device else f"{device}:0"
    assert text.startswith(f"device '{shown}': {provider} cannot be used here (")
    assert text.endswith(
        '). Nothing falls back silently: pass device="cpu" (--device cpu) to run on the CPU, or see `l0runtime doctor`.'
    )


@no_cuda
def test_the_default_device_is_the_gpu_and_does_not_fall_back(save_model: SaveModel) -> None:
    with pytest.raises(DeviceError):
        l0runtime.load(save_model("linear"))


def test_a_node_left_on_the_cpu_is_named_and_refused_unless_allowed() -> None:
    from l0runtime.session.devices import AssignedNode, check_assignment

    nodes = (
        AssignedNode("conv1", "Conv", "CUDAExecutionProvider"),
        AssignedNode("", "NonZero", "CPUExecutionProvider"),
    )
    with pytest.raises(DeviceError) as caught:
        check_assignment(Device("cuda"), nodes, allow_cpu_nodes=False)
    assert str(caught.value) == (
        "device 'cuda:0': 1 of 2 nodes would run on the CPU: unnamed (NonZero). "
        "Pass allow_cpu_nodes=True (--allow-cpu-nodes) to accept that."
    )
    check_assignment(Device("cuda"), nodes, allow_cpu_nodes=True)
    check_assignment(Device("cpu"), nodes, allow_cpu_nodes=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device 'gpu': expected cpu, cuda, cuda:<index>, tensorrt or tensorrt:<index>."),
        ({"device": "cpu:1"}, "device 'cpu:1': expected cpu, cuda, cuda:<index>, tensorrt or tensorrt:<index>."),
        ({"device": "cpu", "thread": 2}, "option 'thread': unknown; did you mean 'threads'?"),
        ({"device": "cpu", "threads": 0}, "threads = 0: expected a whole number of at least 1."),
        (
            {"device": "cpu", "settings": {"session.intra_op.allow_spining": "0"}},
            "session setting 'session.intra_op.allow_spining': unknown; "
            "did you mean 'session.intra_op.allow_spinning'?",
        ),
        ({"device": "cpu", "provider_options": {"q": "1"}}, "provider option 'q': unknown; known are none."),
        (
            {"device": "cuda", "provider_options": {"gpu_mem_limits": "1"}},
            "provider option 'gpu_mem_limits': unknown; did you mean 'gpu_mem_limit'?",
        ),
        ({"device": "cpu", "optimization": "most"}, "optimization 'most': expected all, extended, basic, none."),
        (
            {"device": "cpu", "cuda_graphs": True},
            "cuda_graphs with device 'cpu': a CUDA graph needs device 'cuda' and every node on it.",
        ),
        (
            {"device": "cuda", "cuda_graphs": True, "allow_cpu_nodes": True},
            "cuda_graphs with allow_cpu_nodes: a CUDA graph needs device 'cuda' and every node on it.",
        ),
        (
            {"device": "cpu", "memory_limit": 2**30},
            "memory_limit with device 'cpu': onnxruntime limits GPU memory only.",
        ),
        (
            {"device": "cuda", "memory_limit": 0},
            "memory_limit = 0: expected a number of bytes of at least 1.",
        ),
    ],
)
def test_unknown_options_raise(save_model: SaveModel, options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        l0runtime.load(save_model("linear"), **options)  # type: ignore[arg-type]
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


def test_missing_truncated_and_invalid_files_are_model_file_errors(save_model: SaveModel, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"none\.onnx: no such file"):
        l0runtime.load(tmp_path / "none.onnx", device="cpu")
    path = save_model("linear")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelFileError, match="truncated, of another format or invalid"):
        l0runtime.load(path, device="cpu")
    path.write_text("hello world\n")
    with pytest.raises(ModelFileError, match="truncated, of another format or invalid"):
        l0runtime.load(path, device="cpu")
    unknown = save_model("g (float[N] x) => (float[N] y) { y = NoSuchOperator (x) }")
    with pytest.raises(ModelFileError, match="NoSuchOperator"):
        l0runtime.load(unknown, device="cpu")


def test_an_operator_that_the_provider_lacks_is_unsupported(save_model: SaveModel) -> None:
    path = save_model("g (bfloat16[N] x) => (bfloat16[N] y) { y = Relu (x) }")
    with pytest.raises(UnsupportedModelError, match="CPUExecutionProvider cannot run it"):
        l0runtime.load(path, device="cpu")


def test_a_model_in_memory_loads_too(save_model: SaveModel) -> None:
    session = l0runtime.load(save_model("linear").read_bytes(), device="cpu")
    assert session(np.ones((1, 3), np.float32)).tolist() == [[9, 12]]


def test_the_fallback_in_mid_traffic_is_off(save_model: SaveModel) -> None:
    session = l0runtime.load(save_model("linear"), device="cpu")
    assert isinstance(session._raw, onnxruntime.InferenceSession)
    assert session._raw._enable_fallback is False


def test_options_reach_onnxruntime(save_model: SaveModel) -> None:
    session = l0runtime.load(
        save_model("linear"), device="cpu", threads=3, spin=False, settings={"session.set_denormal_as_zero": "1"}
    )
    options = session._raw.get_session_options()
    assert options.intra_op_num_threads == 3
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"


def test_a_memory_limit_reaches_the_provider_in_its_own_words() -> None:
    assert memory_options(Device("cuda"), 2**30) == {
        "gpu_mem_limit": "1073741824",
        "arena_extend_strategy": "kSameAsRequested",
    }
    assert memory_options(Device("tensorrt"), 2**30) == {"trt_max_workspace_size": "1073741824"}


def test_a_cuda_graph_of_a_model_with_branches_is_refused(tmp_path: Path) -> None:
    """It would take the path of its first inputs for ever."""
    conditional_file(tmp_path / "model.onnx", residual())
    with pytest.raises(OptionError) as caught:
        l0runtime.load(tmp_path / "model.onnx", device="cuda", cuda_graphs=True, buckets=(1,))
    assert str(caught.value) == (
        f"cuda_graphs: {tmp_path / 'model.onnx'} branches on its inputs (node 'f.If', If), and a CUDA graph replays "
        "one path. Load it without cuda_graphs."
    )


def test_cuda_graphs_need_one_shape_for_each_graph(save_model: SaveModel) -> None:
    from l0runtime.session.loading import _check_graph_shapes

    session = l0runtime.load(save_model("linear"), device="cpu")
    _check_graph_shapes(session, (1, 8))
    with pytest.raises(OptionError) as raised:
        _check_graph_shapes(session, ())
    assert str(raised.value) == (
        "cuda_graphs: input 'x: float32 [N, 3]' has dynamic dimensions, and a graph has one shape. Give buckets for "
        "the batch, and export the model with its other dimensions fixed."
    )
