"""InstanceNormalization channel by channel, GroupNormalization by whole groups."""

from __future__ import annotations

import numpy as np
import pytest
from rule_case import TOLERANCE, build, compacted, difference, sizes, with_rule, without_fixup

from converters.compaction.axes import axes_of
from converters.compaction.relations import Tie

R = np.random.default_rng(5)
W1, W2 = R.normal(size=(8, 3, 1, 1)), R.normal(size=(4, 8, 1, 1))
SCALE, BIAS = R.uniform(0.5, 1.5, 8), R.normal(size=8)
X = R.normal(size=(2, 3, 4, 5))


def model(norm: str, closed: list[int], scale=SCALE, bias=BIAS, opset: int = 21):
    w1 = W1.copy()
    w1[closed] = 0
    text = f"(double[N,3,4,5] x) => (double[N,4,4,5] y) {{ h = Conv(x, w1) n = {norm}(h, s, b) y = Conv(n, w2) }}"
    return build(text, opset, w1=w1, w2=W2, s=scale, b=bias)


def test_a_zero_channel_leaves_an_instance_norm_as_its_bias() -> None:
    made = model("InstanceNormalization<epsilon=0.1>", [1, 2])
    assert sizes(compacted(made)) == [(4,), (4, 6, 1, 1), (6,), (6,), (6, 3, 1, 1)]
    assert difference(made, X) < TOLERANCE


def test_a_whole_closed_group_leaves_a_group_norm_as_its_bias() -> None:
    made = model("GroupNormalization<num_groups=4, epsilon=0.1>", [2, 3])
    assert sizes(compacted(made)) == [(4,), (4, 6, 1, 1), (6,), (6,), (6, 3, 1, 1)]
    assert difference(made, X) < TOLERANCE


def test_a_group_with_one_survivor_stays() -> None:
    made = model("GroupNormalization<num_groups=4, epsilon=0.1>", [1, 2, 3, 6])
    assert sizes(compacted(made)) == [(4,), (4, 6, 1, 1), (6,), (6,), (6, 3, 1, 1)]
    assert difference(made, X) < TOLERANCE


def test_before_opset_21_scale_and_bias_belong_to_groups() -> None:
    made = model("GroupNormalization<num_groups=4, epsilon=0.1>", [2, 3], SCALE[:4], BIAS[:4], 20)
    # onnx.checker calls this version deprecated
    assert sizes(compacted(made, check=False)) == [(3,), (3,), (4,), (4, 6, 1, 1), (6, 3, 1, 1)]


def test_groups_that_are_not_counted_anew_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    without_fixup(monkeypatch, "GroupNormalization")
    made = model("GroupNormalization<num_groups=2, epsilon=0.1>", [0, 1, 2, 3])
    assert difference(made, X) > 0.01


def test_channels_that_leave_a_group_one_by_one_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def tie_all(node):
        (channels,) = [axis for axis in axes_of(node.outputs[0]) if axis.dim == 1]
        return [Tie(node, [axis for v in node.inputs for axis in axes_of(v) if axis.size == 8], [channels])]

    text = """(double[N,3,4,5] x) => (double[N,4,4,5] y) {
        h = Conv(x, w1)
        n = GroupNormalization<num_groups=2, epsilon=0.1>(h, s, b)
        y = Conv(n, w2)
    }"""
    w1, w2 = W1.copy(), W2.copy()
    w1[[0, 4]] = 0
    w2[:, [0, 4]] = 0
    made = build(text, 21, w1=w1, w2=w2, s=SCALE, b=BIAS)
    assert difference(made, X) < TOLERANCE
    with_rule(monkeypatch, "GroupNormalization", tie_all)
    without_fixup(monkeypatch, "GroupNormalization")
    assert difference(made, X) > 0.01
