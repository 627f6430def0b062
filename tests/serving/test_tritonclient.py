"""NVIDIA's own clients, unchanged, get what the model computes: every datatype, batches, and the errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from running_server import MODELS, RunningServer, W, options, write_model

http_client = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
grpc_client = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc] is not installed")
from tritonclient.utils import InferenceServerException  # noqa: E402 - absent as the two above are

# ONNX type, NumPy dtype, protocol's name; values at the ends of each range
DTYPES: list[tuple[str, Any, str]] = [
    ("bool", np.bool_, "BOOL"),
    ("int8", np.int8, "INT8"),
    ("int16", np.int16, "INT16"),
    ("int32", np.int32, "INT32"),
    ("int64", np.int64, "INT64"),
    ("uint8", np.uint8, "UINT8"),
    ("uint16", np.uint16, "UINT16"),
    ("uint32", np.uint32, "UINT32"),
    ("uint64", np.uint64, "UINT64"),
    ("float16", np.float16, "FP16"),
    ("float", np.float32, "FP32"),
    ("double", np.float64, "FP64"),
    ("bfloat16", ml_dtypes.bfloat16, "BF16"),
]


def values(dtype: Any) -> np.ndarray[Any, Any]:
    """Two rows of three, with the ends of the range among them."""
    if dtype is np.bool_:
        return np.array([[True, False, True], [False, False, True]])
    if np.issubdtype(dtype, np.integer):
        ends = np.iinfo(dtype)
        return np.array([[ends.min, 0, ends.max], [1, 2, 3]], dtype)
    info = ml_dtypes.finfo(dtype)
    return np.array([[float(info.min), 0.1, float(info.max)], [-0.0, 1 / 3, float(info.tiny)]]).astype(dtype)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder: Path = tmp_path_factory.mktemp("dtypes")
    models = {f"same_{name}": f"g ({name}[N,3] x) => ({name}[N,3] y) {{ y = Identity (x) }}" for name, _, _ in DTYPES}
    models |= MODELS
    running = RunningServer(
        {name: write_model(folder / f"{name}.onnx", text) for name, text in models.items()}, options()
    )
    yield running
    running.stop()


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, server: RunningServer) -> Iterator[tuple[Any, Any]]:
    module, address = (http_client, server.rest) if request.param == "http" else (grpc_client, server.grpc)
    made = module.InferenceServerClient(address)
    yield module, made
    made.close()


def filled(module: Any, name: str, array: np.ndarray[Any, Any], datatype: str, **how: Any) -> Any:
    tensor = module.InferInput(name, array.shape, datatype)
    try:
        tensor.set_data_from_numpy(array, **how)
    except InferenceServerException:
        if datatype != "BF16":
            raise
        # clients before release 26.06 take float32 for BF16 and drop bits; these values have none to drop
        tensor.set_data_from_numpy(array.astype(np.float32), **how)
    return tensor


@pytest.mark.parametrize(("onnx_name", "dtype", "datatype"), DTYPES, ids=[name for _, _, name in DTYPES])
def test_every_datatype_goes_through_unchanged(
    client: tuple[Any, Any], onnx_name: str, dtype: Any, datatype: str
) -> None:
    module, made = client
    array = values(dtype)
    result = made.infer(f"same_{onnx_name}", [filled(module, "x", array, datatype)])
    found = result.as_numpy("y")
    if datatype == "BF16":  # given back as float32 by clients before release 26.06
        assert found.astype(np.float32).tobytes() == array.astype(np.float32).tobytes()
    else:
        assert found.dtype == array.dtype
        assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("onnx_name", "dtype", "datatype"),
    [entry for entry in DTYPES if entry[2] not in ("FP16", "BF16")],  # the client refuses these two as JSON
    ids=[name for _, _, name in DTYPES if name not in ("FP16", "BF16")],
)
def test_every_datatype_goes_through_json_unchanged(
    server: RunningServer, onnx_name: str, dtype: Any, datatype: str
) -> None:
    made = http_client.InferenceServerClient(server.rest)
    array = values(dtype)
    result = made.infer(
        f"same_{onnx_name}",
        [filled(http_client, "x", array, datatype, binary_data=False)],
        outputs=[http_client.InferRequestedOutput("y", binary_data=False)],
    )
    assert result.as_numpy("y").tobytes() == array.tobytes()
    made.close()


@pytest.mark.parametrize("rows", [0, 1, 7, 100])
def test_batches_of_any_size_are_answered(client: tuple[Any, Any], rows: int) -> None:
    module, made = client
    x = np.random.default_rng(rows).integers(-9, 9, (rows, 3)).astype(np.float32)
    result = made.infer("linear", [filled(module, "x", x, "FP32")], request_id=f"r{rows}")
    assert np.array_equal(result.as_numpy("y").reshape(-1, 2), x @ W)
    response = result.get_response()
    assert (response["id"] if isinstance(response, dict) else response.id) == f"r{rows}"


def test_many_requests_at_once_each_get_their_own_answer(server: RunningServer) -> None:
    made = http_client.InferenceServerClient(server.rest, concurrency=16)
    arrays = [np.full((1 + i % 3, 3), i, np.float32) for i in range(200)]
    pending = [made.async_infer("linear", [filled(http_client, "x", array, "FP32")]) for array in arrays]
    for array, one in zip(arrays, pending, strict=True):
        assert np.array_equal(one.get_result().as_numpy("y"), array @ W)
    made.close()


def test_outputs_come_as_asked_for(client: tuple[Any, Any]) -> None:
    module, made = client
    a, b = np.array([[1, 2]], np.float32), np.array([[3, 5]], np.float32)
    inputs = [filled(module, "b", b, "FP32"), filled(module, "a", a, "FP32")]
    result = made.infer("two", inputs, outputs=[module.InferRequestedOutput("difference")])
    assert result.as_numpy("difference").tolist() == [[-2, -3]]
    assert result.as_numpy("total") is None
    everything = made.infer("two", inputs)
    assert everything.as_numpy("total").tolist() == [[4, 7]]


def test_health_and_metadata_are_told(client: tuple[Any, Any]) -> None:
    module, made = client
    assert made.is_server_live()
    assert made.is_server_ready()
    assert made.is_model_ready("linear")
    assert made.is_model_ready("linear", "1")
    as_json = {} if module is http_client else {"as_json": True}
    assert made.get_server_metadata(**as_json)["name"] == "l0runtime"
    metadata = made.get_model_metadata("linear", **as_json)
    assert metadata["versions"] == ["1"]
    assert [int(size) for size in metadata["inputs"][0]["shape"]] == [-1, 3]
    assert metadata["inputs"][0]["datatype"] == "FP32"


def test_a_mistake_is_answered_with_its_reason(client: tuple[Any, Any]) -> None:
    module, made = client
    good = filled(module, "x", np.zeros((1, 3), np.float32), "FP32")
    wide = filled(module, "x", np.zeros((1, 4), np.float32), "FP32")
    whole = filled(module, "x", np.zeros((1, 3), np.int32), "INT32")
    other = filled(module, "z", np.zeros((1, 3), np.float32), "FP32")
    index = filled(module, "i", np.array([5]), "INT64")
    cases: list[tuple[str, list[Any], dict[str, Any], str, str]] = [
        ("absent", [good], {}, "404", "no model 'absent'; this server has "),
        (
            "linear",
            [good],
            {"model_version": "9"},
            "404",
            "model 'linear' has no version '9' now; it serves version 1.",
        ),
        ("linear", [wide], {}, "400", "input 'x': found shape [1, 4], expected [N, 3]."),
        ("linear", [whole], {}, "400", "input 'x': found datatype 'INT32', expected FP32."),
        ("linear", [other], {}, "400", "input 'z' is not one of the model's inputs: x."),
        ("linear", [], {}, "400", "input 'x' is missing. The model takes x: float32 [N, 3]."),
        ("table", [index], {}, "400", "the model cannot compute these inputs: "),
    ]
    codes = {"404": "StatusCode.NOT_FOUND", "400": "StatusCode.INVALID_ARGUMENT"}
    for model, inputs, how, status, message in cases:
        with pytest.raises(InferenceServerException) as caught:
            made.infer(model, inputs, **how)
        assert message in caught.value.message(), model
        assert caught.value.status() == (status if module is http_client else codes[status])


def test_a_client_s_own_time_limit_is_kept(server: RunningServer) -> None:
    made = http_client.InferenceServerClient(server.rest)
    x = filled(http_client, "x", np.zeros((1, 3), np.float32), "FP32")
    assert made.infer("linear", [x], timeout=10_000_000).as_numpy("y").tolist() == [[0, 0]]
    made.close()
