"""A session tells which blocks its requests ran, and its outputs stay what they are."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conditional_graphs import choose, conditional_file, inferred, nested, normal, residual, run
from small_graphs import graph

import l0runtime
from converters.compaction import compact
from l0runtime.conditional import ConditionalBlock, ConditionalModel, Executions
from l0runtime.conditional.counting import CountingSession
from l0runtime.conditional.executions import count_decisions
from l0runtime.errors import OptionError, UnsupportedModelError
from l0runtime.session import MicroBatcher

ALL = np.array([1, 2, 3])


def load(path: Path) -> CountingSession:
    session = l0runtime.load(path, device="cpu", threads=1, count_blocks=True)
    assert isinstance(session, CountingSession)
    return session


@pytest.fixture
def path(tmp_path: Path) -> Path:
    conditional_file(tmp_path / "model.onnx", residual())
    return tmp_path / "model.onnx"


BLOCK_MACS = 2 * 25 * 4 * 4 * 9  # two 3x3 convolutions of 4 channels on 5 x 5 pixels


def test_outputs_are_those_of_the_file(path: Path) -> None:
    session = load(path)
    feed = {"x": normal(8, 4, 5, 5), "k": choose(8, 0.25)}
    plain = l0runtime.load(path, device="cpu", threads=1)
    assert session.outputs == plain.outputs
    assert list(session.run(feed)) == ["y"]
    np.testing.assert_array_equal(session.run(feed)["y"], plain.run(feed)["y"])
    np.testing.assert_array_equal(session(**feed), plain(**feed))


def test_rates_and_macs_are_counted_over_all_runs(path: Path) -> None:
    session = load(path)
    session.run({"x": normal(8, 4, 5, 5), "k": choose(8, 0.25)})
    session.run({"x": normal(2, 4, 5, 5), "k": choose(2, 1.0)})
    found = session.executions
    assert (found.requests, found.samples) == (2, 10)
    assert found.rates == {"f": pytest.approx(0.4)}
    assert (found.macs, found.macs_masked) == (4 * BLOCK_MACS, 10 * BLOCK_MACS)
    assert str(found) == "10 samples in 2 runs: 28,800 MACs, 40% of masked; f 40%"
    assert session.reset_executions() == found
    assert session.executions.samples == 0


def test_a_model_of_one_input_is_counted_by_every_way_of_calling_it(tmp_path: Path) -> None:
    """Plain arrays for one input take the shortest way through a session; it must not pass the counter by."""
    masked = inferred(
        graph(
            """(float[N,4,5,5] x) => (float[N,4,5,5] y) {
                p = ReduceMean<keepdims=1>(x, all)  g = Relu(p)
                f = Conv<pads=[1,1,1,1]>(x, w)  m = Mul(f, g)  y = Add(x, m)
            }""",
            all=ALL,
            w=normal(4, 4, 3, 3),
        )
    )
    conditional_file(tmp_path / "model.onnx", masked)
    session = load(tmp_path / "model.onnx")
    x = normal(8, 4, 5, 5) + np.array([2, -2, -2, 2, 2, -2, -2, -2], np.float32).reshape(8, 1, 1, 1)
    runs = int((x.mean((1, 2, 3)) > 0).sum())
    assert runs == 3
    for number, call in enumerate((session.run, session.run_counted, lambda feed: session(feed["x"])), start=1):
        call({"x": x})
        assert session.executions.wanted == (number * runs,)


def test_work_is_that_of_the_shapes_of_each_request(tmp_path: Path) -> None:
    plain = graph(
        """(float[N,4,H,W] x) => (float[N,4,H,W] y) {
            p = ReduceMean<keepdims=1>(x, all)  g = Relu(p)
            f = Conv<pads=[1,1,1,1]>(x, w)  m = Mul(f, g)  s = Add(x, m)  y = Conv(s, v)
        }""",
        all=ALL,
        w=normal(4, 4, 3, 3),
        v=normal(4, 4, 1, 1),
    )
    masked = ir.to_proto(compact(ir.from_proto(plain)).model)  # knows that a padded Conv keeps H and W
    conditional_file(tmp_path / "model.onnx", masked)
    session = load(tmp_path / "model.onnx")
    for height, width in ((5, 5), (7, 9)):
        x = normal(6, 4, height, width)
        runs = int((x.mean((1, 2, 3)) > 0).sum())
        _, found = session.run_counted({"x": x})
        per_pixel = 6 * 16 + runs * 9 * 16
        assert (found.macs, found.macs_masked) == (height * width * per_pixel, height * width * 6 * (16 + 9 * 16))


def test_work_does_not_depend_on_the_precision(tmp_path: Path) -> None:
    plain = graph(
        """(float[N,4,H,W] x) => (float[N,4,H,W] y) {
            p = ReduceMean<keepdims=1>(x, all)  g = Relu(p)
            f = Conv<pads=[1,1,1,1]>(x, w)  m = Mul(f, g)  y = Add(x, m)
        }""",
        all=ALL,
        w=normal(4, 4, 3, 3),
    )
    conditional_file(tmp_path / "model.onnx", ir.to_proto(compact(ir.from_proto(plain)).model))
    x = np.full((3, 4, 6, 6), 0.5, np.float32)
    for precision in (None, "float16"):
        session = l0runtime.load(tmp_path / "model.onnx", device="cpu", precision=precision, count_blocks=True)
        assert isinstance(session, CountingSession)
        _, found = session.run_counted({"x": x})
        assert (found.wanted, found.macs) == ((3,), 3 * 36 * 9 * 16)


def test_each_request_can_be_asked_for_its_own(path: Path) -> None:
    session = load(path)
    outputs, found = session.run_counted({"x": normal(4, 4, 5, 5), "k": choose(4, 0.5)})
    assert list(outputs) == ["y"]
    assert (found.samples, found.wanted, found.macs) == (4, (2,), 2 * BLOCK_MACS)
    _, found = session.run_counted({"x": normal(1, 4, 5, 5), "k": choose(1, 0.0)}, ["y"])
    assert (found.samples, found.wanted, found.macs) == (1, (0,), 0)
    assert session.executions.samples == 5


def test_blocks_within_blocks_are_counted_for_those_that_reach_them(tmp_path: Path) -> None:
    masked = nested()
    conditional_file(tmp_path / "model.onnx", masked)
    feed = {"x": normal(16, 4, 5, 5), "k": choose(16, 0.5)}
    _, found = load(tmp_path / "model.onnx").run_counted(feed)
    masked.graph.output.append(l0runtime_output("gi"))
    inner = run(masked, **feed)[1].reshape(-1) * (feed["k"].reshape(-1) > 0)
    assert found.wanted == (8, int(inner.sum()))
    # the inner block is one of the three convolutions
    assert found.macs == 8 * BLOCK_MACS + int(inner.sum()) * BLOCK_MACS // 2


def l0runtime_output(name: str) -> object:
    import onnx

    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 1, 1, 1])


def test_a_block_that_runs_whole_is_paid_for_by_all() -> None:
    blocks = tuple(
        ConditionalBlock(name, name, name, "", form, parent, True, True, macs, 0, 0, f"{name}.If")
        for name, form, parent, macs in (("a", "samples", None, 10), ("b", "batch", 0, 100), ("c", "batch", None, 1000))
    )
    model = ConditionalModel(blocks, 7)
    found = count_decisions(model, [np.array([1, 1, 0, 1]), np.array([0, 1, 0, 0]), np.zeros(4)])
    assert found == Executions(model, 4, (3, 1, 0), (3, 3, 0), 4 * 7 + 3 * 10 + 3 * 100, 4 * (7 + 1110))


def test_requests_that_a_batcher_merges_each_get_their_own_answer(path: Path) -> None:
    """Each sample takes another path: half of the requests run the block, half skip it."""
    session = load(path)
    feeds = [{"x": normal(rows, 4, 5, 5), "k": choose(rows, share)} for rows in (1, 2, 3) for share in (0.0, 0.5, 1.0)]
    plain = l0runtime.load(path, device="cpu", threads=1)
    answers: dict[int, np.ndarray] = {}
    with MicroBatcher(session, max_batch=8, max_delay_ms=20) as batcher:

        def ask(number: int) -> None:
            answers[number] = batcher.run(feeds[number % len(feeds)])["y"]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4 * len(feeds))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, found in answers.items():
        # a merged batch may round otherwise, in the last bits of sums of 36 products
        np.testing.assert_allclose(found, plain.run(feeds[number % len(feeds)])["y"], rtol=1e-5, atol=1e-5)
    assert session.executions.samples >= 4 * sum(len(feed["x"]) for feed in feeds)


def test_the_counter_is_right_from_many_threads(path: Path) -> None:
    session = load(path)
    feed = {"x": normal(4, 4, 5, 5), "k": choose(4, 0.5)}
    own: list[Executions] = []
    threads = [threading.Thread(target=lambda: own.append(session.run_counted(feed)[1])) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found.wanted for found in own] == [(2,)] * 16
    assert session.executions.wanted == (32,)


def test_a_model_without_conditional_blocks_has_nothing_to_count(tmp_path: Path) -> None:
    conditional_file(tmp_path / "model.onnx", residual())
    with pytest.raises(UnsupportedModelError) as caught:
        l0runtime.load(tmp_path / "masked_model.onnx", device="cpu", count_blocks=True)
    assert str(caught.value) == (
        f"{tmp_path / 'masked_model.onnx'}: has no conditional blocks to count. Load it without count_blocks, or "
        "convert a model with input-dependent gates."
    )


def test_padding_would_be_counted_and_is_refused(path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        l0runtime.load(path, device="cpu", count_blocks=True, buckets=(1, 8))
    assert str(caught.value) == "count_blocks counts the samples of each run: leave out max_batch and buckets."


def test_a_bound_run_is_refused(path: Path) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        load(path).bind({"x": normal(1, 4, 5, 5), "k": choose(1, 1.0)})
    assert str(caught.value) == f"{path}: bound runs are not counted. Load it without count_blocks."
