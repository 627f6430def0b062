"""Constants at a jump: only exact ones pass, those well away from it always do; expected values by hand."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from small_graphs import compacted, graph, shapes

from converters.compaction.rules import step_functions

R = np.random.default_rng(5)
OPEN = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 1.0], np.float32)


def sandwich(text: str, **numbers: object) -> onnx.ModelProto:
    """x [N, 4] -> MatMul [N, 6] -> closed at 1 and 3 -> TEXT from g to m -> MatMul [N, 3], float32."""
    arrays = {name: np.asarray(value, np.float32) for name, value in numbers.items()}
    return graph(
        f"(float[N,4] x) => (float[N,3] y) {{ h = MatMul(x, w1) g = Mul(h, z) {text} y = MatMul(m, w2) }}",
        w1=R.normal(size=(4, 6)).astype(np.float32),
        w2=R.normal(size=(6, 3)).astype(np.float32),
        z=OPEN,
        **arrays,
    )


def width(model: onnx.ModelProto) -> int:
    """How many hidden features are left."""
    return next(dims[1] for dims in shapes(compacted(model)[0]).values() if dims[:1] == (4,) and len(dims) == 2)


def difference(model: onnx.ModelProto) -> float:
    x = R.normal(size=(7, 4)).astype(np.float32)
    before, after = (
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for m in (model, compacted(model)[0])
    )
    return float(np.abs(before - after).max() / np.abs(before).max())


@pytest.mark.parametrize(
    "text",
    [
        "m = Floor(g)",  # 0 times anything is 0 in every precision, and stays it
        "r = Relu(g) n = Neg(r) m = Sign(n)",
        "a = Add(g, one) m = Floor(a)",  # 0 + 1 is not rounded
        "c = Equal(g, nil) m = Where(c, one, g)",
        "c = Greater(g, nil) d = Greater(x0, nil) e = And(c, d) m = Cast<to=1>(e)",
        "a = Add(g, half) b = Add(a, one) m = Floor(b)",  # 1.5, well away from 1 and 2
        "a = Add(g, half) m = ThresholdedRelu<alpha=0.25>(a)",
        "a = Add(g, half) m = Shrink<lambd=1.0, bias=0.5>(a)",
    ],
)
def test_constants_that_are_certain_pass(text: str) -> None:
    text = text.replace("d = Greater(x0", "s = MatMul(x, w1) d = Greater(s")
    model = sandwich(text, nil=0.0, one=1.0, half=0.5)
    assert width(model) == 4
    assert difference(model) < 1e-5  # float32 sums of 6 terms


@pytest.mark.parametrize(
    "text",
    [
        "a = Add(g, tenth) b = Add(a, fifth) c = GreaterOrEqual(b, three) m = Where(c, one, g)",
        "a = Sigmoid(g) b = Add(a, half) m = Floor(b)",  # 1 up to rounding
        "a = Add(g, fifth) b = Mul(a, a) m = Shrink<lambd=0.04, bias=0.5>(b)",
        "a = Add(g, fifth) b = Mul(a, a) m = Mod<fmod=1>(b, tenth)",
    ],
)
def test_constants_at_a_jump_stay_unless_nothing_was_rounded(text: str) -> None:
    model = sandwich(text, tenth=0.1, fifth=0.2, three=0.3, half=0.5, one=1.0)
    assert width(model) == 6
    assert difference(model) < 1e-5


def test_a_margin_that_is_left_out_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    # in float32 0.1 + 0.2 is 0.3 as float32 stores it; the stored numbers add up to less in float64
    model = sandwich(
        "a = Add(g, tenth) b = Add(a, fifth) c = GreaterOrEqual(b, three) m = Where(c, two, a)",
        tenth=0.1, fifth=0.2, three=0.3, two=2.0,
    )  # fmt: skip
    assert difference(model) < 1e-5
    monkeypatch.setattr(step_functions, "_is_settled", lambda node, function, known, margins: np.ones(6, bool))
    assert difference(model) > 1e-2


def test_an_unknown_operand_is_not_taken_for_a_number() -> None:
    assert width(sandwich("h2 = MatMul(x, w1) c = Greater(h2, g) m = Where(c, one, h2)", one=1.0)) == 6
