"""Are input-independent channels behind a padded depthwise convolution folded into a map, where it pays?"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from small_graphs import LIMIT, compacted, difference, graph, operators, shapes

from converters.compaction.map_convolution import convolve

RNG = np.random.default_rng(2)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def inverted_residual(size: str, out: str, dead: int = 24, outputs: int = 8) -> onnx.ModelProto:
    """1x1 Conv with zero filters -> live bias -> ReLU6 -> padded depthwise -> ReLU6 -> 1x1 Conv."""
    w1 = normal(32, 4, 1, 1)
    w1[:dead] = 0
    return graph(
        f"""(double[N,4,{size}] x) => (double[N,{outputs},{out}] y) {{
            c = Conv(x, w1, b1)  a = Clip(c, low, high)
            d = Conv<group=32, pads=[1,1,1,1], strides=[2,2]>(a, w2, b2)  e = Clip(d, low, high)
            y = Conv(e, w3, b3)
        }}""",
        w1=w1,
        b1=RNG.uniform(0.5, 2, 32),  # no constant is zero
        low=np.array(0.0),
        high=np.array(6.0),
        w2=normal(32, 1, 3, 3),
        b2=normal(32),
        w3=normal(outputs, 32, 1, 1),
        b3=normal(outputs),
    )


def test_dead_channels_become_a_map_where_the_size_is_static() -> None:
    model = inverted_residual("16,16", "8,8")
    compact, result = compacted(model)
    assert result.plan.kept == ()
    found = shapes(compact)
    assert found["w1"] == (8, 4, 1, 1)
    assert found["w3"] == (8, 8, 1, 1)
    # 16 -> 8 with stride 2: the first row and column see the border, the other 7 are alike
    assert (1, 8, 2, 2) in found.values()
    assert operators(compact).count("Gather") == 2
    assert difference(model, compact, x=normal(3, 4, 16, 16)) < LIMIT


def test_dead_channels_stay_where_the_size_is_dynamic() -> None:
    model = inverted_residual("H,W", "OH,OW")
    compact, _ = compacted(model)
    assert shapes(compact)["w3"] == (8, 32, 1, 1)
    assert difference(model, compact, x=normal(2, 4, 9, 12)) < LIMIT


def test_one_dead_channel_is_not_worth_a_map_over_many_outputs() -> None:
    model = inverted_residual("16,16", "8,8", dead=1, outputs=64)
    compact, _ = compacted(model)
    assert shapes(compact)["w3"] == (64, 32, 1, 1)
    assert difference(model, compact, x=normal(2, 4, 16, 16)) < LIMIT


def test_branch_that_is_a_map_is_added_as_one() -> None:
    model = graph(
        """(double[N,6,10,10] x) => (double[N,6,10,10] y) {
            c = Conv<pads=[1,1,1,1]>(x, w1, b1)  a = Relu(c)  d = Conv<pads=[1,1,1,1]>(a, w2, b2)
            s = Add(x, d)  y = Relu(s)
        }""",
        w1=np.zeros((6, 6, 3, 3)),
        b1=np.abs(normal(6)),
        w2=normal(6, 6, 3, 3),
        b2=normal(6),
    )
    compact, _ = compacted(model)
    assert "Conv" not in operators(compact)
    assert difference(model, compact, x=normal(2, 6, 10, 10)) < LIMIT


def test_map_without_its_border_is_caught() -> None:
    model = inverted_residual("16,16", "8,8")
    compact, _ = compacted(model)
    for tensor in compact.graph.initializer:
        if tuple(tensor.dims) == (1, 8, 2, 2):
            inside = onnx.numpy_helper.to_array(tensor)[..., -1:, -1:]
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.broadcast_to(inside, (1, 8, 2, 2)).copy(), tensor.name))
    assert difference(model, compact, x=normal(2, 4, 16, 16)) > 1e-3


def grouped_bottleneck(size: str, groups: int = 4, dead: int = 5) -> onnx.ModelProto:
    """1x1 Conv whose first filters of each group of 8 are zero -> live bias -> ReLU -> padded grouped Conv."""
    width = 8 * groups
    w1 = normal(width, 4, 1, 1)
    for group in range(groups):
        w1[8 * group : 8 * group + dead + (group % 2)] = 0
    return graph(
        f"""(double[N,4,{size}] x) => (double[N,{width},{size}] y) {{
            c = Conv(x, w1, b1)  a = Relu(c)
            y = Conv<group={groups}, pads=[1,1,1,1]>(a, w2, b2)
        }}""",
        w1=w1,
        b1=RNG.uniform(0.5, 2, width),  # no constant is zero
        w2=normal(width, 8, 3, 3),
        b2=normal(width),
    )


def test_constants_in_front_of_a_padded_grouped_convolution_become_a_map() -> None:
    model = grouped_bottleneck("16,16")
    compact, _ = compacted(model)
    found = shapes(compact)
    assert found["w1"] == (3 * 4, 4, 1, 1)  # 5 of 8 go from each group; the sixth of two groups stays with its fellows
    assert (32, 3, 3, 3) in found.values()
    assert (1, 32, 3, 3) in found.values()  # border, inside, border
    assert difference(model, compact, x=normal(3, 4, 16, 16)) < LIMIT


def test_constants_in_front_of_a_padded_grouped_convolution_stay_where_the_size_is_dynamic() -> None:
    model = grouped_bottleneck("H,W")
    compact, _ = compacted(model)
    assert shapes(compact)["w1"] == (32, 4, 1, 1)
    assert difference(model, compact, x=normal(2, 4, 9, 12)) < LIMIT


@pytest.mark.parametrize("seed", range(40))
def test_a_map_that_repeats_itself_is_convolved_like_any_other(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kernel, groups, stride, dilation = (int(rng.choice(c)) for c in ([1, 2, 3, 5], [1, 4], [1, 1, 2], [1, 2]))
    pads = [int(p) for p in rng.integers(0, 4, 4)]
    height, width = (int(n) for n in rng.integers((kernel - 1) * dilation + 1, 18, 2))
    # a few different rows and columns, each in one run: 1 1 1 2 3 3 3 3
    rows, columns = (np.sort(rng.integers(0, 4, n)) for n in (height, width))
    x = rng.standard_normal((4, 4, 4))[:, rows][:, :, columns]
    weight = rng.standard_normal((8, 4 // groups, kernel, kernel))
    attributes = {"strides": [stride] * 2, "dilations": [dilation] * 2, "pads": pads, "group": groups}
    padded = torch.nn.functional.pad(torch.from_numpy(x), (pads[1], pads[3], pads[0], pads[2]))
    expected = torch.nn.functional.conv2d(
        padded[None], torch.from_numpy(weight), stride=stride, dilation=dilation, groups=groups
    )[0]
    np.testing.assert_allclose(convolve(ir.node("Conv", [], attributes), x, weight), expected.numpy(), atol=1e-12)
