"""Do Resize, DepthToSpace and SpaceToDepth let channels go, and only together where they belong together?"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_graphs import LIMIT, compacted, difference, graph, shapes

from converters.compaction import relations

RNG = np.random.default_rng(3)


def depth_to_space(mode: str, closed: list[int]) -> onnx.ModelProto:
    gate = np.ones((12, 1, 1))
    gate[closed] = 0
    return graph(
        f"""(double[N,3,5,5] x) => (double[N,4,10,10] y) {{
            h = Conv(x, w1)  g = Mul(h, z)  d = DepthToSpace<blocksize=2, mode="{mode}">(g)  y = Conv(d, w2)
        }}""",
        w1=RNG.standard_normal((12, 3, 1, 1)),
        z=gate,
        w2=RNG.standard_normal((4, 3, 1, 1)),
    )


# output channel c is made of input channels c, c+3, c+6, c+9 (DCR) or 4c .. 4c+3 (CRD)
@pytest.mark.parametrize(("mode", "closed"), [("DCR", [1, 4, 7, 10]), ("CRD", [4, 5, 6, 7])])
def test_channel_whose_four_parts_are_closed_goes(mode: str, closed: list[int]) -> None:
    model = depth_to_space(mode, closed)
    compact, _ = compacted(model)
    assert (4, 2, 1, 1) in shapes(compact).values()
    assert (8, 3, 1, 1) in shapes(compact).values()
    assert difference(model, compact, x=RNG.standard_normal((2, 3, 5, 5))) < LIMIT


@pytest.mark.parametrize(("mode", "closed"), [("DCR", [4, 5, 6, 7]), ("CRD", [1, 4, 7, 10])])
def test_channel_of_which_one_part_lives_stays(mode: str, closed: list[int]) -> None:
    model = depth_to_space(mode, closed)
    compact, _ = compacted(model)
    assert (12, 3, 1, 1) in shapes(compact).values()
    assert difference(model, compact, x=RNG.standard_normal((2, 3, 5, 5))) < LIMIT


def test_parts_cut_one_by_one_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relations.Whole, "shrink", lambda self, permission: None)
    model = depth_to_space("DCR", [4, 5, 6, 7])
    # 10 channels are left, which no longer fill blocks of 4
    with pytest.raises(onnx.shape_inference.InferenceError):
        compacted(model)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_constant_channels_pass_a_resize_and_fold_behind_it(mode: str) -> None:
    gate = np.array([1.0, 0.0, 1.0, 0.0]).reshape(4, 1, 1)
    model = graph(
        f"""(double[N,3,5,5] x) => (double[N,2,10,10] y) {{
            h = Conv(x, w1)  g = Mul(h, z)  s = Sigmoid(g)
            u = Resize<mode="{mode}">(s, , scales)  y = Conv(u, w2, b2)
        }}""",
        w1=RNG.standard_normal((4, 3, 1, 1)),
        z=gate,
        scales=np.array([1, 1, 2, 2], np.float32),
        w2=RNG.standard_normal((2, 4, 1, 1)),
        b2=RNG.standard_normal(2),
    )
    compact, _ = compacted(model)
    assert shapes(compact)["w2"] == (2, 2, 1, 1)
    assert difference(model, compact, x=RNG.standard_normal((2, 3, 5, 5))) < LIMIT


def test_channels_of_a_space_to_depth_go_with_all_their_parts() -> None:
    gate = np.array([1.0, 0.0, 1.0]).reshape(3, 1, 1)
    model = graph(
        """(double[N,3,4,4] x) => (double[N,2,2,2] y) {
            h = Conv(x, w1)  g = Mul(h, z)  d = SpaceToDepth<blocksize=2>(g)  y = Conv(d, w2)
        }""",
        w1=RNG.standard_normal((3, 3, 1, 1)),
        z=gate,
        w2=RNG.standard_normal((2, 12, 1, 1)),
    )
    compact, _ = compacted(model)
    assert shapes(compact)["w2"] == (2, 8, 1, 1)
    assert difference(model, compact, x=RNG.standard_normal((2, 3, 4, 4))) < LIMIT
