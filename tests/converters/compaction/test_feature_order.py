"""Are closed features put last in each head, on both sides alike, and only where nothing else sees their order?"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from rule_case import TOLERANCE, build, compacted, difference, sizes

from converters.compaction import feature_order

R = np.random.default_rng(7)
WQ, WK, WV, WO = (R.normal(size=shape) / 2 for shape in ((6, 12), (6, 12), (6, 12), (12, 6)))
BV = R.normal(size=12)
X = R.normal(size=(2, 5, 6))

HEADS = """
    qr = Reshape(q, split) kr = Reshape(k, split) vr = Reshape(v, split)
    qt = Transpose<perm=[0,2,1,3]>(qr) kt = Transpose<perm=[0,2,3,1]>(kr) vt = Transpose<perm=[0,2,1,3]>(vr)
    s = MatMul(qt, kt) p = Softmax<axis=-1>(s) c = MatMul(p, vt)
    ct = Transpose<perm=[0,2,1,3]>(c) m = Reshape(ct, flat)
"""
FUSED = "m = Attention<q_num_heads=3, kv_num_heads=3>(q, k, v)"


def closed(matrix, axis, *features):
    """Zeros at these features of 3 heads with 4 features each."""
    changed = matrix.copy()
    np.moveaxis(changed, axis, 0)[list(features)] = 0
    return changed


def attention(core: str = HEADS, behind: str = "y = MatMul(m, wo)", outputs: str = "double[N,5,6] y", **weights):
    chosen = {"wq": WQ, "wk": WK, "wv": WV, "wo": WO, "bv": BV, **weights}
    if core is HEADS:
        chosen |= {"split": [0, 0, 3, 4], "flat": [0, 0, 12]}
    text = f"""(double[N,5,6] x) => ({outputs}) {{
        q = MatMul(x, wq) k = MatMul(x, wk) v0 = MatMul(x, wv) v = Add(v0, bv)
        {core}
        {behind}
    }}"""
    return build(text, 23, **chosen)


@pytest.mark.parametrize("core", [HEADS, FUSED], ids=["plain", "fused"])
def test_unread_outputs_at_different_places_of_each_head_go_up_to_the_fullest_head(core: str) -> None:
    made = attention(core, wo=closed(WO, 0, 0, 1, 5, 6, 10, 11))  # two of four in each head
    assert sizes(compacted(made)) == [(6,), (6, 6), (6, 6), (6, 12), (6, 12)]
    assert difference(made, X) < TOLERANCE


@pytest.mark.parametrize("core", [HEADS, FUSED], ids=["plain", "fused"])
def test_queries_and_keys_that_are_closed_at_different_places_go(core: str) -> None:
    made = attention(core, wq=closed(WQ, 1, 0, 6), wk=closed(WK, 1, 3, 4, 11, 9))
    assert sizes(compacted(made)) == [(6, 6), (6, 6), (6, 12), (12,), (12, 6)]
    assert difference(made, X) < TOLERANCE


def test_the_fullest_head_decides() -> None:
    made = attention(wo=closed(WO, 0, 0, 1, 2, 5, 10, 11))  # 3, 1 and 2 of four
    assert sizes(compacted(made)) == [(6, 9), (6, 12), (6, 12), (9,), (9, 6)]
    assert difference(made, X) < TOLERANCE


def test_a_head_that_goes_as_a_whole_does_not_count() -> None:
    made = attention(wo=closed(WO, 0, 0, 1, 6, 7, 8, 9, 10, 11))
    assert sizes(compacted(made)) == [(4,), (4, 6), (6, 4), (6, 8), (6, 8)]
    assert difference(made, X) < TOLERANCE


def test_two_projections_behind_the_heads_leave_everything_in_its_order() -> None:
    made = attention(behind="a = MatMul(m, wo) b = MatMul(m, w2) y = Add(a, b)", wo=closed(WO, 0, 0, 5, 10), w2=WO)
    assert sizes(compacted(made))[-1] == (12, 6)
    assert difference(made, X) < TOLERANCE


def test_values_that_are_an_output_keep_their_order() -> None:
    made = attention(outputs="double[N,5,6] y, double[N,5,12] v", wo=closed(WO, 0, 0, 5, 10))
    assert sizes(compacted(made)) == [(6, 12), (6, 12), (6, 12), (12,), (12, 6)]
    assert difference(made, X) < TOLERANCE


def test_the_plan_says_what_was_reordered() -> None:
    import onnx_ir as ir

    from converters.compaction import compact

    plan = compact(ir.from_proto(attention(wo=closed(WO, 0, 0, 5, 10)))).plan
    values, merged = plan.reordered
    assert values.value == "v"
    assert values.order == merged.order == (1, 2, 3, 0, 4, 6, 7, 5, 8, 9, 11, 10)


@pytest.mark.parametrize("side", ["chain_behind", "chain_before"])
def test_one_side_left_in_its_order_is_caught(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = attention(wo=closed(WO, 0, 0, 1, 5, 6, 10, 11))
    original = getattr(feature_order, side)

    def empty(merged):
        chain = original(merged)
        chain.operands.clear()
        return chain

    monkeypatch.setattr(feature_order, side, empty)
    with pytest.raises((AssertionError, onnx.shape_inference.InferenceError)):
        assert difference(made, X) < TOLERANCE
