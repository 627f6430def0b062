"""Is a depthwise convolution with a multiplier put behind a Gather exactly where that pays?"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_graphs import LIMIT, compacted, difference, graph, operators, shapes

from converters.compaction.padding import Coupling, Layer

RNG = np.random.default_rng(0)
# input i of 16 makes outputs 2 i and 2 i + 1; 8 inputs and 16 outputs stay
CLOSED = [0, 2, 3, 6, 9, 10, 12, 15]
CLOSED_OUTPUTS = [0, 1, 2, 4, 7, 8, 9, 13, 14, 18, 19, 20, 22, 25, 28, 31]
EVEN_OUTPUTS = [j for j in range(32) if j // 2 in CLOSED]
ONE = "d = Conv<group=16>(g, w2)"
TWO = "d1 = Conv<group=16>(g, w2)  d2 = Conv<group=16>(g, w6)  d = Add(d1, d2)"
TWO_SOURCES = "r = Relu(g)  d1 = Conv<group=16>(r, w2)  q = Tanh(g)  d2 = Conv<group=16>(q, w6)  d = Add(d1, d2)"


def streams(spread: str, size: int = 28, outputs: list[int] = CLOSED_OUTPUTS) -> onnx.ModelProto:
    """16 gated channels that `v` reads too, spread to 32 gated ones to which `t` is added."""
    gate, gate2 = RNG.uniform(0.5, 1, (16, 1, 1)), RNG.uniform(0.5, 1, (32, 1, 1))
    gate[CLOSED], gate2[outputs] = 0, 0
    return graph(
        f"""(double[N,8,{size},{size}] x) => (double[N,4,{size},{size}] v, double[N,32,{size},{size}] y) {{
            h = Conv(x, w1)  g = Mul(h, z)  v = Conv(g, w5)
            {spread}
            t = Conv(x, w4)  s = Add(d, t)  e = Mul(s, z2)  y = Conv(e, w3)
        }}""",
        w1=RNG.standard_normal((16, 8, 1, 1)),
        z=gate,
        w5=RNG.standard_normal((4, 16, 1, 1)),
        w2=RNG.standard_normal((32, 1, 1, 1)),
        w6=RNG.standard_normal((32, 1, 1, 1)),
        w4=RNG.standard_normal((32, 8, 1, 1)),
        z2=gate2,
        w3=RNG.standard_normal((32, 32, 1, 1)),
    )


def feed(size: int = 28) -> np.ndarray:
    return RNG.standard_normal((2, 8, size, size))


def gathers(model: onnx.ModelProto) -> int:
    return operators(model).count("Gather")


def test_streams_on_both_sides_are_cut_by_themselves() -> None:
    model = streams(ONE)
    compact, result = compacted(model)
    assert gathers(compact) == 1
    assert {(8, 8, 1, 1), (16, 1, 1, 1), (16, 8, 1, 1), (32, 16, 1, 1)} <= set(shapes(compact).values())
    assert difference(model, compact, x=feed()) < LIMIT
    (selected,) = result.plan.selected
    assert str(selected) == "g[1]: Conv d takes 7 of 8 indices, 16 times in all, by a Gather"
    staying = [j for j in range(32) if j not in CLOSED_OUTPUTS]
    # an output whose input is gone has a zero filter and reads the first that stays
    assert selected.indices == tuple(j // 2 if j // 2 not in CLOSED else 1 for j in staying)
    filters = next(array for array in arrays(compact) if array.shape == (16, 1, 1, 1))
    assert [bool(f) for f in filters.ravel()] == [j // 2 not in CLOSED for j in staying]


def arrays(model: onnx.ModelProto) -> list[np.ndarray]:
    return [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]


def test_convolutions_that_read_the_same_share_one_gather() -> None:
    model = streams(TWO)
    compact, result = compacted(model)
    assert gathers(compact) == 1
    assert len(result.plan.selected) == 2
    assert difference(model, compact, x=feed()) < LIMIT


def test_no_gather_where_all_inputs_keep_equally_many_outputs() -> None:
    model = streams(ONE, outputs=EVEN_OUTPUTS)
    compact, result = compacted(model)
    assert gathers(compact) == 0
    assert result.plan.selected == ()
    assert {(8, 8, 1, 1), (16, 1, 1, 1), (32, 16, 1, 1)} <= set(shapes(compact).values())
    assert difference(model, compact, x=feed()) < LIMIT


def test_no_gather_where_copying_costs_more_than_it_saves() -> None:
    model = streams(ONE, size=5)
    compact, _ = compacted(model)
    assert gathers(compact) == 0
    # both sides stay together: 14 inputs, as only two have no output either, with two outputs each
    assert {(14, 8, 1, 1), (28, 1, 1, 1)} <= set(shapes(compact).values())
    assert difference(model, compact, x=feed(5)) < LIMIT


def test_two_gathers_are_not_each_paid_with_what_both_save_together() -> None:
    """Put together again, either one makes all that both save stay: more than one Gather costs, less than two."""
    assert gathers(compacted(streams(ONE, size=20))[0]) == 1
    model = streams(TWO_SOURCES, size=20)
    compact, _ = compacted(model)
    assert gathers(compact) == 0
    assert difference(model, compact, x=feed(20)) < LIMIT
    larger = streams(TWO_SOURCES, size=48)
    compact, _ = compacted(larger)
    assert gathers(compact) == 2
    assert difference(larger, compact, x=feed(48)) < LIMIT


@pytest.mark.parametrize("extra", [1, 3])
def test_a_spread_convolution_is_a_layer_with_one_input_for_each_output(extra: int) -> None:
    asked: list[Layer] = []

    def widths(layers: list[Layer], couplings: list[Coupling]) -> list[int]:
        asked.extend(layers)
        return [coupling.kept + extra for coupling in couplings]

    model = streams(ONE)
    compact, _ = compacted(model, widths)  # type: ignore[arg-type]
    (layer,) = [layer for layer in asked if layer.node.outputs[0].name == "d"]
    assert (layer.kept_inputs, layer.kept_outputs, layer.groups, layer.is_depthwise) == (16, 16, 16, True)
    assert (16 + extra, 1, 1, 1) in shapes(compact).values()
    assert difference(model, compact, x=feed()) < LIMIT


def test_wrong_indices_are_caught() -> None:
    model = streams(ONE)
    compact, _ = compacted(model)
    for tensor in compact.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64:
            shifted = (onnx.numpy_helper.to_array(tensor) + 1) % 8
            tensor.CopyFrom(onnx.numpy_helper.from_array(shifted, tensor.name))
    assert difference(model, compact, x=feed()) > 0.1
