"""verify accepts what is equal and rejects what is not, down to one wrong weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from small_models import change_weight, make_mlp

from converters.compaction import compact
from converters.verification import verify
from l0runtime.errors import UnsupportedModelError, VerificationError


@pytest.fixture
def compacted(mlp: Path, tmp_path: Path) -> Path:
    path = tmp_path / "compact.onnx"
    ir.save(compact(ir.load(mlp)).model, path)
    return path


def save(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def parse(body: str, path: Path, signature: str = "float[N,4] x) => (float[N,4] y", opset: int = 18) -> Path:
    text = f'<ir_version: 9, opset_import: ["": {opset}]> g ({signature}) {body}'
    return save(onnx.parser.parse_model(text), path)


def test_an_equal_model_is_verified_on_three_batches_in_float32_and_float64(mlp: Path, compacted: Path) -> None:
    found = verify(mlp, compacted)
    assert found.batches == ("x 32x5", "x 1x5", "x 18x5")
    assert found.shapes == {"x": (1, 5)}
    assert found.decided_by == "float32"
    assert found.largest is not None
    assert found.largest <= found.limit == 2.0**-23 * 8
    assert found.float64 is not None
    assert found.float64 <= 1e-10  # the limit that the issue of exactness sets; 1e-16 is what is seen
    assert found.torch is None


@pytest.mark.parametrize("exact", [None, False, True])
def test_one_wrong_weight_is_rejected(mlp: Path, compacted: Path, tmp_path: Path, exact: bool | None) -> None:
    proto = onnx.load(compacted)
    weight = proto.graph.initializer[0].name

    def double_the_first(array: np.ndarray) -> None:
        array.flat[0] *= 2

    wrong = save(change_weight(proto, weight, double_the_first), tmp_path / "wrong.onnx")
    with pytest.raises(VerificationError, match=r"No file was written. Please report this model"):
        verify(mlp, wrong, exact=exact)


def test_a_weight_wrong_by_less_than_float32_can_show_is_rejected_in_float64(
    mlp: Path, compacted: Path, tmp_path: Path
) -> None:
    proto = onnx.load(compacted)

    def shift_a_little(array: np.ndarray) -> None:
        array.flat[0] += 2e-6 * np.abs(array).max()

    wrong = save(change_weight(proto, "fc2.weight", shift_a_little), tmp_path / "wrong.onnx")
    with pytest.raises(VerificationError, match=r"weight 'fc2.weight' of the compact model is not the rounding of its"):
        verify(mlp, wrong, exact=True)


def test_the_message_names_output_batch_place_values_and_limit(mlp: Path, tmp_path: Path) -> None:
    def break_bias(array: np.ndarray) -> None:
        array[1] += 1

    wrong = save(change_weight(make_mlp(), "fc2.bias", break_bias), tmp_path / "wrong.onnx")
    ones = {"x": np.ones((1, 5), np.float32)}
    with pytest.raises(VerificationError) as caught:
        verify(mlp, wrong, [ones], exact=False)
    text = str(caught.value)
    assert text.startswith("output 'y' on x 1x5: ")
    assert " at [0, 1], scale " in text
    assert "the limit is 9.5e-07 (rounding of float32 sums of up to 64 terms, epsilon * sqrt(terms))" in text


def test_nan_is_a_mismatch_even_where_both_give_it(tmp_path: Path) -> None:
    path = parse("{ y = Sqrt(x) }", tmp_path / "sqrt.onnx")
    with pytest.raises(VerificationError, match="output 'y' on x 32x4: the gated model gives NaN in"):
        verify(path, path)


def test_another_shape_is_a_mismatch(tmp_path: Path) -> None:
    signature = "float[N,4] x) => (float[M,K] y"
    gated = parse("{ y = Identity(x) }", tmp_path / "gated.onnx", signature)
    wrong = parse("{ y = Transpose<perm = [1, 0]>(x) }", tmp_path / "wrong.onnx", signature)
    with pytest.raises(VerificationError, match=r"output 'y' on x 32x4: shape \[32, 4\] became \[4, 32\]"):
        verify(gated, wrong)


def test_other_names_or_types_of_inputs_are_a_mismatch(tmp_path: Path) -> None:
    gated = parse("{ y = Identity(x) }", tmp_path / "gated.onnx")
    wrong = parse("{ y = Identity(z) }", tmp_path / "wrong.onnx", "float[N,4] z) => (float[N,4] y")
    with pytest.raises(VerificationError) as caught:
        verify(gated, wrong)
    assert str(caught.value) == "inputs of the gated model are x FLOAT[N,4]; of the compact z FLOAT[N,4]."


def test_rounding_that_the_model_itself_amplifies_is_settled_in_float64(tmp_path: Path) -> None:
    # adding and subtracting 2^24 rounds x to an even number, or to the next: float32 gives anything, float64 the truth
    gated = parse(
        "<float[4,4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}, float big = {16777216}>"
        "{ h = MatMul(x, w) a = Add(h, big) y = Sub(a, big) }",
        tmp_path / "gated.onnx",
    )
    other = parse(
        "<float[4,4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}, float big = {16777216}>"
        "{ h = MatMul(x, w) a = Sub(h, big) y = Add(a, big) }",
        tmp_path / "other.onnx",
    )
    found = verify(gated, other)
    assert found.decided_by == "float64"
    assert found.largest is not None
    assert found.largest > found.limit


def test_the_torch_module_is_compared_with_the_compact_model(mlp: Path, compacted: Path) -> None:
    import onnxruntime as ort

    session = ort.InferenceSession(str(mlp))

    def same(feed: Any) -> list[np.ndarray]:
        outputs: list[np.ndarray] = session.run(None, dict(feed))
        return outputs

    found = verify(mlp, compacted, reference=same)
    assert found.torch is not None
    assert found.torch <= found.limit

    def wrong(feed: Any) -> list[np.ndarray]:
        return [output + 1 for output in same(feed)]

    with pytest.raises(VerificationError, match="The torch module and its export differ, in float64"):
        verify(mlp, compacted, reference=wrong, reference64=lambda: wrong)


def test_a_torch_module_that_cannot_be_judged_in_float64_must_agree_in_float32(mlp: Path, compacted: Path) -> None:
    def wrong(feed: Any) -> list[np.ndarray]:
        return [np.zeros((len(feed["x"]), 3), np.float32)]

    with pytest.raises(VerificationError, match="output 'y'"):
        verify(mlp, compacted, reference=wrong)


def test_a_model_that_float64_cannot_judge_is_refused_only_when_float64_is_asked_for(tmp_path: Path) -> None:
    path = parse(
        "<float s = {0.1}> { q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }",
        tmp_path / "quantised.onnx",
    )
    found = verify(path, path)
    assert (found.float64, found.float64_skipped) == (None, "QuantizeLinear rounds to integers by design")
    with pytest.raises(UnsupportedModelError, match="cannot be checked in float64: QuantizeLinear rounds to integers"):
        verify(path, path, exact=True)


def test_float64_can_be_switched_off(mlp: Path, compacted: Path) -> None:
    found = verify(mlp, compacted, exact=False)
    assert (found.float64, found.float64_skipped) == (None, "switched off")


def test_bfloat16_which_onnxruntime_cannot_run_is_judged_in_float64(tmp_path: Path) -> None:
    path = parse(
        "<bfloat16[4] w = {1, 2, 3, 4}> { y = Mul(x, w) }",
        tmp_path / "bf16.onnx",
        "bfloat16[N,4] x) => (bfloat16[N,4] y",
    )
    found = verify(path, path)
    assert (found.outputs, found.decided_by, found.float64) == ({}, "float64", 0.0)
