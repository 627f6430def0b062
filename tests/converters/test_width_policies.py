"""Widths follow from the times of a table, here an invented one, so that nothing is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_graphs import compacted, graph, shapes

from converters.compaction import Coupling, compact
from converters.width_policies import Cheapest, Multiple, Replayed, _size_of
from l0runtime.measurement.layer_times import LayerKind, LayerTimes, Widths

RNG = np.random.default_rng(0)


class Table(LayerTimes):
    """A table that is a formula."""

    def __init__(self, formula: Callable[[LayerKind, Widths], float]) -> None:
        self._formula = formula
        self.kinds: list[LayerKind] = []

    def times_ms(self, kind: LayerKind, widths: Sequence[Widths]) -> list[float]:
        self.kinds.append(kind)
        return [self._formula(kind, pair) for pair in widths]


def blocked(kind: LayerKind, widths: Widths) -> float:
    """Proportional to the work, but half of it where both sides fill blocks of 8 (or one is the image's 3)."""
    fits = all(width % 8 == 0 or width == 3 for width in widths)
    return widths[0] * widths[1] * (0.5 if fits else 1)


def network(live: int, width: int = 32) -> onnx.ModelProto:
    """Two gated 3x3 convolutions, the second with stride 2, and a classifier."""
    gates = {}
    for name in ("z1", "z2"):
        mask = np.zeros(width)
        mask[RNG.permutation(width)[:live]] = 1
        gates[name] = mask.reshape(1, width, 1, 1)
    return graph(
        """(double[N,3,H,H] x) => (double[N,8] y) {
            c1 = Conv<pads = [1, 1, 1, 1]>(x, w1)  r1 = Relu(c1)  g1 = Mul(r1, z1)
            c2 = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(g1, w2)  r2 = Relu(c2)  g2 = Mul(r2, z2)
            p = GlobalAveragePool(g2)  f = Flatten(p)  y = Gemm(f, w3)
        }""",
        w1=RNG.standard_normal((width, 3, 3, 3)),
        w2=RNG.standard_normal((width, width, 3, 3)),
        w3=RNG.standard_normal((width, 8)),
        **gates,
    )


def layers_of(model: onnx.ModelProto, widths: Any) -> set[tuple[int, ...]]:
    return {shape for shape in shapes(compacted(model, widths)[0]).values() if len(shape) in (2, 4) and shape[0] > 1}


def test_a_multiple_rounds_every_width_up() -> None:
    assert layers_of(network(5), Multiple(4)) == {(8, 3, 3, 3), (8, 8, 3, 3), (8, 8)}


def test_a_multiple_beyond_the_gated_width_leaves_the_width_as_it_is() -> None:
    assert layers_of(network(21, width=23), Multiple(8)) == {(21, 3, 3, 3), (21, 21, 3, 3), (21, 8)}


def test_widths_are_padded_where_the_table_says_that_it_pays() -> None:
    chooser = Cheapest(Table(blocked), {"N": 1, "H": 16})
    # 15 to 16: the 3x3 takes 256 / 2 instead of 225
    assert layers_of(network(15), chooser) == {(16, 3, 3, 3), (16, 16, 3, 3), (16, 8)}
    assert chooser.chosen == {"c1[1]": 16, "c2[1]": 16}
    assert chooser.couplings == 2
    assert (chooser.before_ms, chooser.after_ms) == (3 * 15 + 15 * 15 + 15 * 8, (3 * 16 + 16 * 16 + 16 * 8) / 2)


def test_widths_stay_where_padding_costs_more_than_it_gives() -> None:
    chooser = Cheapest(Table(blocked), {"N": 1, "H": 16})
    # 9 to 16: the 3x3 would take 256 / 2 instead of 81
    assert layers_of(network(9), chooser) == {(9, 3, 3, 3), (9, 9, 3, 3), (9, 8)}
    assert chooser.chosen == {}
    assert chooser.before_ms == chooser.after_ms


def test_of_two_equally_fast_widths_the_narrower_one_is_taken() -> None:
    chooser = Cheapest(Table(lambda kind, widths: 1.0), {"N": 1, "H": 16})
    assert layers_of(network(9), chooser) == {(9, 3, 3, 3), (9, 9, 3, 3), (9, 8)}


def test_a_layer_is_looked_up_as_it_will_run() -> None:
    table = Table(blocked)
    compacted(network(15), Cheapest(table, {"N": 2, "H": 16}))
    conv = {kind for kind in table.kinds if kind.op_type == "Conv"}
    pads = ("pads", (1, 1, 1, 1))
    assert conv == {
        LayerKind("Conv", 2, (16, 16), (3, 3), (pads,), 1, "float64"),
        LayerKind("Conv", 2, (16, 16), (3, 3), (pads, ("strides", (2, 2))), 1, "float64"),
    }
    assert LayerKind("Gemm", 2, dtype="float64") in table.kinds


def test_a_layer_of_unknown_size_is_left_out_and_counted() -> None:
    chooser = Cheapest(Table(blocked), {"N": 1})
    compacted(network(15), chooser)
    # the height of x is not given, so neither convolution is known; the Gemm is
    assert chooser.unknown == 2


def test_recorded_widths_are_chosen_again_in_another_precision() -> None:
    chooser = Cheapest(Table(blocked), {"N": 1, "H": 16})
    model = network(15)
    first = compact(ir.from_proto(model), chooser).model
    again = compact(ir.from_proto(model), Replayed(chooser.chosen)).model
    assert [(n, v.shape) for n, v in first.graph.initializers.items()] == [
        (n, v.shape) for n, v in again.graph.initializers.items()
    ]


def test_recorded_widths_say_nothing_of_other_couplings() -> None:
    assert Replayed({})([], [Coupling(axis=None, kept=3, full=8, step=1, gains={})]) == [3]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("H", 17),
        ("floor(H/2 - 1/2) + 1", 9),
        ("2*W*N", 60),
        ("Max(H, W) // 2", 8),
        ("-(H - W)", -7),
        ("H % 4", 1),
        ("H/2", None),  # no whole number
        ("depth", None),
        ("__import__('os').getcwd()", None),
        ("floor(", None),
        ("H ** 99", None),
        ("H/(N - 3)", None),
    ],
)
def test_dimensions_are_evaluated_as_arithmetic_and_nothing_else(text: str, size: int | None) -> None:
    assert _size_of(ir.SymbolicDim(text), {"H": 17, "W": 10, "N": 3}) == size


def test_a_dimension_without_a_name_has_no_size() -> None:
    assert _size_of(ir.SymbolicDim(None), {}) is None
    assert _size_of(7, {}) == 7
