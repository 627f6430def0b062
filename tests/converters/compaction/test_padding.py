"""Dead indices stay where a width is wanted: the function is kept, and no more stays than was asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cases import CASES
from judge import Judgement
from small_graphs import LIMIT, compacted, difference, graph, shapes

from converters.compaction import Compaction, Coupling, Layer, compact
from converters.compaction.analysis import analyse
from converters.compaction.axes import Permission
from converters.compaction.normalise import normalise

RNG = np.random.default_rng(0)


class Asked:
    """Widths that remember what they were asked; `extra` steps for every coupling."""

    def __init__(self, extra: int = 0) -> None:
        self.extra = extra
        self.layers: Sequence[Layer] = ()
        self.couplings: Sequence[Coupling] = ()

    def __call__(self, layers: Sequence[Layer], couplings: Sequence[Coupling]) -> list[int]:
        self.layers, self.couplings = layers, couplings
        return [coupling.kept + self.extra * coupling.step for coupling in couplings]


def gate(size: int, live: int) -> np.ndarray:
    mask = np.zeros(size)
    mask[RNG.permutation(size)[:live]] = 1
    return mask


def chain(live: int = 5) -> onnx.ModelProto:
    """x [N,3,H,W] -> conv to 8, gated -> depthwise -> conv to 4, of which none is gated."""
    return graph(
        """(double[N,3,H,W] x) => (double[N,4,H,W] y) {
            c = Conv<pads = [1, 1, 1, 1]>(x, w1)  g = Mul(c, z)  d = Conv<group = 8, pads = [1, 1, 1, 1]>(g, w2)
            y = Conv(d, w3)
        }""",
        w1=RNG.standard_normal((8, 3, 3, 3)),
        z=gate(8, live).reshape(1, 8, 1, 1),
        w2=RNG.standard_normal((8, 1, 3, 3)),
        w3=RNG.standard_normal((4, 8, 1, 1)),
    )


def test_the_axes_that_are_cut_together_are_one_coupling() -> None:
    asked = Asked()
    compacted(chain(), asked)
    (coupling,) = asked.couplings
    assert (coupling.kept, coupling.full, coupling.step) == (5, 8, 1)
    gaining = {str(axis) for axis in coupling.gains}
    assert {"c[1]", "g[1]", "d[1]", "w1[0]", "w3[1]"} <= gaining
    assert {"x[1]", "y[1]"}.isdisjoint(gaining)


def test_layers_are_given_with_their_survivors() -> None:
    asked = Asked()
    compacted(chain(), asked)
    found = [(str(layer.inputs), layer.kept_inputs, str(layer.outputs), layer.kept_outputs) for layer in asked.layers]
    assert found == [("x[1]", 3, "c[1]", 5), ("g[1]", 5, "d[1]", 5), ("d[1]", 5, "y[1]", 4)]
    assert [layer.is_depthwise for layer in asked.layers] == [False, True, False]


@pytest.mark.parametrize(("extra", "width"), [(0, 5), (1, 6), (3, 8), (9, 8)])
def test_a_coupling_gets_the_width_that_was_asked_for_up_to_its_own(extra: int, width: int) -> None:
    model = chain()
    compact_model, result = compacted(model, Asked(extra))
    assert sorted(shapes(compact_model).values()) == [(4, width, 1, 1), (width, 1, 3, 3), (width, 3, 3, 3)]
    assert difference(model, compact_model, x=RNG.standard_normal((2, 3, 5, 4))) < LIMIT
    padded = {
        (k.value, k.count) for k in result.plan.kept if k.reason == "it pads the width to one that the hardware likes"
    }
    assert (("c", width - 5) in padded) == (width > 5)


def test_a_grouped_convolution_gains_one_channel_in_every_group() -> None:
    model = graph(
        """(double[N,4,H,W] x) => (double[N,4,H,W] y) {
            c = Conv(x, w1)  g = Mul(c, z)  d = Conv<group = 2>(g, w2)  y = Conv(d, w3)
        }""",
        w1=RNG.standard_normal((8, 4, 1, 1)),
        z=np.array([1, 1, 0, 0, 1, 0, 1, 0.0]).reshape(1, 8, 1, 1),  # 2 of 4 in each group
        w2=RNG.standard_normal((6, 4, 1, 1)),
        w3=RNG.standard_normal((4, 6, 1, 1)),
    )
    asked = Asked(1)
    compact_model, _ = compacted(model, asked)
    (coupling,) = asked.couplings
    assert (coupling.kept, coupling.step, asked.layers[1].groups) == (4, 2, 2)
    assert (6, 3, 1, 1) in shapes(compact_model).values()
    assert difference(model, compact_model, x=RNG.standard_normal((2, 4, 3, 3))) < LIMIT


def test_a_flattened_channel_gains_all_its_positions() -> None:
    model = graph(
        """(double[N,3,2,2] x) => (double[N,4] y) {
            c = Conv(x, w1)  g = Mul(c, z)  f = Flatten(g)  y = Gemm(f, w2)
        }""",
        w1=RNG.standard_normal((6, 3, 1, 1)),
        z=gate(6, 2).reshape(1, 6, 1, 1),
        w2=RNG.standard_normal((24, 4)),
    )
    asked = Asked(1)
    compact_model, _ = compacted(model, asked)
    (coupling,) = asked.couplings
    assert {str(axis): gain for axis, gain in coupling.gains.items()}["f[1]"] == 4
    assert (12, 4) in shapes(compact_model).values()
    assert difference(model, compact_model, x=RNG.standard_normal((2, 3, 2, 2))) < LIMIT


def test_trying_what_an_index_drags_along_changes_nothing() -> None:
    model = ir.from_proto(chain())
    normalise(model)
    permission = Permission(analyse(model.graph).relations)
    permission.solve()
    before = {axis: (permission.removable(axis).copy(), permission.cause(axis).copy()) for axis in permission.axes}
    (axis,) = [axis for axis in permission.axes if str(axis) == "c[1]"]
    mask = np.zeros(8, bool)
    mask[np.flatnonzero(permission.removable(axis))[0]] = True
    assert permission.gains(axis, mask)[axis] == 1
    for other, (removable, cause) in before.items():
        assert (permission.removable(other) == removable).all()
        assert (permission.cause(other) == cause).all()


def as_wide_as_before(layers: Sequence[Layer], couplings: Sequence[Coupling]) -> list[int]:
    return [coupling.full for coupling in couplings]


def half_way(layers: Sequence[Layer], couplings: Sequence[Coupling]) -> list[int]:
    return [(coupling.kept + coupling.full + 1) // 2 for coupling in couplings]


@pytest.mark.parametrize("widths", [as_wide_as_before, half_way])
@pytest.mark.parametrize("name", list(CASES)[::8])
def test_padded_cases_of_the_operator_table_keep_their_function(name: str, widths: object) -> None:
    def padded(model: ir.Model) -> Compaction:
        return compact(model, widths)  # type: ignore[arg-type]

    judged = Judgement(CASES[name], padded)
    checks = (judged.valid, judged.exact, judged.rounded, judged.runs)
    assert [wrong for check in checks if (wrong := check())] == []
