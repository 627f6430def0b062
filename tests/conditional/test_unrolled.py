"""The work of a conditional model is counted as that of the masked one, and of what is left without its blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conditional_graphs import conditional_file, nested, normal, residual
from small_graphs import graph

from converters.compaction import compact
from l0runtime.conditional.metadata import conditional_blocks
from l0runtime.conditional.unrolled import recount, unroll, without_weights
from l0runtime.measurement import count_cost

CONVOLUTION = 25 * 4 * 4 * 9  # 3x3, 4 channels, 5 x 5 pixels


@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize(("make", "convolutions"), [(residual, 2), (nested, 3)])
def test_all_blocks_or_none(tmp_path: Path, make: object, convolutions: int, batch: int | str) -> None:
    conditional_file(tmp_path / "model.onnx", make(batch))  # type: ignore[operator]
    for rows in (1,) if batch == 1 else (1, 3):
        shapes = {"x": (rows, 4, 5, 5), "k": (rows, 1, 1, 1)}
        found = count_cost(tmp_path / "model.onnx", shapes=shapes)
        masked = count_cost(tmp_path / "masked_model.onnx", shapes=shapes)
        assert (found.macs, found.least_macs) == (rows * convolutions * CONVOLUTION, 0)
        assert found.uncounted == ()
        assert masked.macs == found.macs
        assert masked.least_macs is None
        assert found.parameters == masked.parameters


def test_what_follows_a_block_is_counted_in_any_case(tmp_path: Path) -> None:
    """onnx alone cannot tell the shape behind a branch, whose number of rows depends on the gate."""
    tail = "m = Mul(f, g)  s = Add(x, m)  y = Conv<pads=[1,1,1,1]>(s, w3)"
    conditional_file(tmp_path / "model.onnx", residual(tail=tail, w3=normal(4, 4, 3, 3)))
    found = count_cost(tmp_path / "model.onnx", batch=2)
    assert (found.macs, found.least_macs) == (6 * CONVOLUTION, 2 * CONVOLUTION)


def test_other_shapes_are_other_work(tmp_path: Path) -> None:
    plain = graph(
        """(float[N,4,H,W] x, float[N,1,1,1] k) => (float[N,4,H,W] y) {
            g = Relu(k)  f = Conv<pads=[1,1,1,1]>(x, w)  m = Mul(f, g)  s = Add(x, m)  y = Conv(s, v)
        }""",
        w=normal(4, 4, 3, 3),
        v=normal(4, 4, 1, 1),
    )
    proto = conditional_file(tmp_path / "model.onnx", ir.to_proto(compact(ir.from_proto(plain)).model))
    model = conditional_blocks(proto)
    assert model is not None
    assert (model.blocks[0].macs, model.macs_always) == (9 * 16, 16)  # converted at one pixel
    found = recount(without_weights(proto), model, {"x": (3, 4, 6, 7), "k": (3, 1, 1, 1)})
    assert (found.blocks[0].macs, found.macs_always) == (42 * 9 * 16, 42 * 16)


def test_nothing_of_the_model_is_changed(tmp_path: Path) -> None:
    proto = conditional_file(tmp_path / "model.onnx", nested())
    model = conditional_blocks(proto)
    assert model is not None
    before = proto.SerializeToString()
    unrolled, places = unroll(proto, model, runs=True)
    assert proto.SerializeToString() == before
    assert len(places) == len(unrolled.graph.node)
    assert {1} == {place for node, place in zip(unrolled.graph.node, places, strict=True) if "w3" in node.input}


def test_big_weights_are_dropped_and_shapes_are_not() -> None:
    model = graph("(float[2,64] x) => (float[2,64] y) { y = MatMul(x, w) }", w=np.ones((64, 64), np.float32))
    assert without_weights(model).ByteSize() < 64 * 64
    assert tuple(model.graph.initializer[0].dims) == (64, 64)
