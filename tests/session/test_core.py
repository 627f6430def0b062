"""Running a session gives what NumPy gives, and refuses what does not fit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

import l0runtime
from l0runtime.errors import InputError

SaveModel = Callable[..., Path]
W = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
X = np.array([[1, 0, 0], [0, 1, 0], [1, 1, -1]], np.float32)
Y = np.array([[1, 2], [3, 4], [-1, 0]], np.float32)  # X W by hand; small integers, so equality is exact


def test_numpy_in_gives_numpy_out(save_model: SaveModel) -> None:
    session = l0runtime.load(save_model("linear"), device="cpu")
    result = session.run({"x": X})
    assert list(result) == ["y"]
    assert isinstance(result["y"], np.ndarray)
    assert np.array_equal(result["y"], Y)


def test_a_transposed_view_is_read_in_its_own_order(save_model: SaveModel) -> None:
    session = l0runtime.load(save_model("linear"), device="cpu")
    view = np.ascontiguousarray(X.T).T
    assert not view.flags.c_contiguous
    assert np.array_equal(session(view), Y)


def test_an_empty_batch_gives_an_empty_batch(save_model: SaveModel) -> None:
    session = l0runtime.load(save_model("linear"), device="cpu")
    assert session(np.zeros((0, 3), np.float32)).shape == (0, 2)


def test_torch_in_gives_torch_out_and_ignores_grad(save_model: SaveModel) -> None:
    session = l0runtime.load(save_model("linear"), device="cpu")
    result = session(torch.from_numpy(X).requires_grad_())
    assert isinstance(result, torch.Tensor)
    assert not result.requires_grad
    assert torch.equal(result, torch.from_numpy(Y))


def test_another_dlpack_tensor_is_taken(save_model: SaveModel) -> None:
    class Other:
        def __dlpack__(self, **_: object) -> object:
            return X.__dlpack__()

        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

    session = l0runtime.load(save_model("linear"), device="cpu")
    assert np.array_equal(session(Other()), Y)


def test_torch_inputs_are_not_copied(save_model: SaveModel) -> None:
    from l0runtime.session.arrays import as_numpy, from_numpy, to_ort_value

    tensor = torch.ones(2, 3)
    view = as_numpy("x", tensor)
    assert view.ctypes.data == tensor.data_ptr()
    assert to_ort_value(view).data_ptr() == tensor.data_ptr()
    back = from_numpy(view, "torch")
    assert back.data_ptr() == tensor.data_ptr()


def test_inputs_pass_by_position_by_name_or_both(save_model: SaveModel) -> None:
    session = l0runtime.load(save_model("two"), device="cpu")
    a, b = np.full((1, 2), 5, np.float32), np.full((1, 2), 3, np.float32)
    for total, difference in (session(a, b), session(a, b=b), session(b=b, a=a)):
        assert total.tolist() == [[8, 8]]
        assert difference.tolist() == [[2, 2]]
    assert list(session.run({"a": a, "b": b}, ["difference"])) == ["difference"]


def test_bool_and_integer_tensors_pass_in_both_libraries(save_model: SaveModel) -> None:
    path = save_model("g (bool[N] p, int64[N] i) => (bool[N] q, int64[N] j) { q = Not (p) j = Neg (i) }")
    session = l0runtime.load(path, device="cpu")
    q, j = session(np.array([True, False]), np.array([3, -4]))
    assert (q.tolist(), j.tolist()) == ([False, True], [-3, 4])
    q, j = session(torch.tensor([True, False]), torch.tensor([3, -4]))
    assert (q.tolist(), j.tolist(), q.dtype) == ([False, True], [-3, 4], torch.bool)


def test_bfloat16_tensors_pass_in_both_libraries(save_model: SaveModel) -> None:
    path = save_model(
        """g (bfloat16[N,2] x) => (bfloat16[N,2] y) {
            a = Cast <to=1> (x)
            b = Neg (a)
            y = Cast <to=16> (b)
        }"""
    )
    session = l0runtime.load(path, device="cpu")
    result = session(np.array([[1, -2.5]], ml_dtypes.bfloat16))
    assert result.dtype == ml_dtypes.bfloat16
    assert result.astype(np.float32).tolist() == [[-1, 2.5]]
    tensor = session(torch.tensor([[1, -2.5]], dtype=torch.bfloat16))
    assert tensor.dtype == torch.bfloat16
    assert tensor.float().tolist() == [[-1, 2.5]]


def test_metadata_of_the_converter_is_exposed_without_its_prefix(save_model: SaveModel) -> None:
    session = l0runtime.load(save_model("linear", source="lenet.safetensors"), device="cpu")
    assert session.metadata == {"source": "lenet.safetensors"}


def test_specs_and_repr_say_what_the_model_takes_and_gives(save_model: SaveModel) -> None:
    path = save_model("linear")
    session = l0runtime.load(path, device="cpu")
    assert (session.inputs[0].name, session.inputs[0].dtype, session.inputs[0].shape) == ("x", "float32", ("N", 3))
    assert repr(session) == f"Session({path} on cpu: x: float32 [N, 3] -> y: float32 [N, 2])"


def test_every_node_reports_its_provider(save_model: SaveModel) -> None:
    session = l0runtime.load(save_model("two"), device="cpu")
    assert sorted((node.op_type, node.provider) for node in session.nodes) == [
        ("Add", "CPUExecutionProvider"),
        ("Sub", "CPUExecutionProvider"),
    ]
    assert session.cpu_nodes == ()


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({}, "input 'x' is missing. The model takes x: float32 [N, 3]."),
        ({"x": X, "z": X}, "'z' is no input. The model takes x: float32 [N, 3]."),
        ({"z": X}, "input 'x' is missing, 'z' is no input. The model takes x: float32 [N, 3]."),
        ({"x": X.astype(np.float64)}, "input 'x': found dtype float64, expected float32. Convert it first."),
        ({"x": X.astype(">f4")}, "input 'x': found dtype >f4, expected float32. Convert it first."),
        ({"x": X[0]}, "input 'x': found shape [3], expected [N, 3]."),
        ({"x": X[:, :2]}, "input 'x': found shape [3, 2], expected [N, 3]."),
        (
            {"x": [[1.0, 2.0, 3.0]]},
            "input 'x': found list, expected a NumPy array, a torch tensor or another DLPack tensor. Convert it first.",
        ),
    ],
)
def test_a_feed_that_does_not_fit_is_refused_before_onnxruntime(
    save_model: SaveModel, feed: dict[str, object], message: str
) -> None:
    session = l0runtime.load(save_model("linear"), device="cpu")
    with pytest.raises(InputError) as caught:
        session.run(feed)
    assert str(caught.value) == message


def test_one_dynamic_dimension_has_one_size_across_inputs(save_model: SaveModel) -> None:
    session = l0runtime.load(save_model("two"), device="cpu")
    with pytest.raises(InputError) as caught:
        session(np.zeros((2, 2), np.float32), np.zeros((1, 2), np.float32))
    assert str(caught.value) == (
        "input 'b': found shape [1, 2], expected [N, 2] with N = 2 as in the inputs before it."
    )


def test_wrong_positions_and_outputs_are_refused(save_model: SaveModel) -> None:
    session = l0runtime.load(save_model("linear"), device="cpu")
    with pytest.raises(InputError, match=r"^2 positional inputs given; the model takes 1\.$"):
        session(X, X)
    with pytest.raises(InputError, match=r"^input 'x': given by position and by name\.$"):
        session(X, x=X)
    with pytest.raises(InputError, match=r"^'q' is no output\. The model gives y: float32 \[N, 2\]\.$"):
        session.run({"x": X}, ["q"])


def test_an_index_outside_its_table_is_an_input_error(save_model: SaveModel) -> None:
    path = save_model("g (int64[N] i) => (float[N] y) <float[3] t={7,8,9}> { y = Gather (t, i) }")
    session = l0runtime.load(path, device="cpu")
    assert session(np.array([2, 0])).tolist() == [9, 7]
    with pytest.raises(InputError, match="onnxruntime refused the inputs"):
        session(np.array([3]))


def test_run_async_gives_a_future_whose_error_is_its_own(save_model: SaveModel) -> None:
    with l0runtime.load(save_model("linear"), device="cpu", async_threads=2) as session:
        good, bad = session.run_async({"x": X}), session.run_async({"x": X[0]})
        assert np.array_equal(good.result(timeout=30)["y"], Y)
        with pytest.raises(InputError):
            bad.result(timeout=30)


def test_threads_sharing_a_session_each_get_their_own_answer(save_model: SaveModel) -> None:
    session = l0runtime.load(save_model("linear"), device="cpu", threads=1)
    wrong: list[int] = []

    def work(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(200):
            x = generator.integers(-9, 9, (int(generator.integers(1, 5)), 3)).astype(np.float32)
            if not np.array_equal(session(x), x @ W):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_warm_up_runs_and_checks_the_feed(save_model: SaveModel) -> None:
    session = l0runtime.load(save_model("linear"), device="cpu")
    session.warm_up({"x": X}, {"x": X[:1]})
    with pytest.raises(InputError):
        session.warm_up({"x": X[0]})
