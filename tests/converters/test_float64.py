"""Upcasting turns every float into float64 and leaves everything else alone."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from converters.float64 import evaluate, reason_against, upcast


def parse(body: str, signature: str = "float[N,2] x) => (float[N,2] y", opset: int = 18) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 9, opset_import: ["": {opset}]> g ({signature}) {body}')


def run(model: ir.Model, **feed: np.ndarray) -> np.ndarray:
    upcast(model)
    (output,) = evaluate(ir.to_proto(model), feed)
    return output


def test_weights_and_inputs_become_float64_and_nothing_is_rounded_on_the_way() -> None:
    model = parse("<float[2] w = {16777216, 3}> { s = Add(x, w) y = Sub(s, w) }")
    # in float32 16777216 + 1 is 16777216, so this would give 0
    output = run(model, x=np.array([[1, 0.1]], np.float32))
    assert output.dtype == np.float64
    assert output[0, 0] == 1


def test_constants_of_every_form_become_float64() -> None:
    model = parse(
        """{ a = Constant<value_float = 0.5>() b = Constant<value_floats = [1.0, 2.0]>()
             c = Constant<value = float[2] {3, 4}>() s = Constant<value = int64[1] {2}>() d = ConstantOfShape(s)
             e = ConstantOfShape<value = float[1] {7}>(s) xa = Add(x, a) xb = Add(xa, b) xc = Add(xb, c)
             xd = Add(xc, d) y = Add(xd, e) }"""
    )
    assert run(model, x=np.zeros((1, 2), np.float32)).tolist() == [[11.5, 13.5]]


def test_casts_to_a_float_give_float64_and_casts_to_an_integer_stay() -> None:
    model = parse(
        "<float[2] w = {0.25, 0.25}> { i = Cast<to = 7>(x) f = Cast<to = 1>(i) h = Cast<to = 10>(f) y = Add(h, w) }"
    )
    assert run(model, x=np.array([[1.9, -1.9]], np.float32)).tolist() == [[1.25, -0.75]]


def test_scales_of_a_resize_stay_float32_as_its_specification_demands() -> None:
    model = parse(
        '<float[4] s = {1, 1, 2, 2}> { y = Resize<mode = "nearest">(x, , s) }',
        "float[1,1,2,2] x) => (float[1,1,4,4] y",
    )
    upcast(model)
    assert model.graph.initializers["s"].dtype == ir.DataType.FLOAT
    assert model.graph.outputs[0].dtype == ir.DataType.DOUBLE


def test_the_bodies_of_if_are_upcast_too() -> None:
    model = parse(
        "{ y = If(c) <then_branch = t () => (float[1] a) <float[1] w = {1.5}> { a = Identity(w) },"
        " else_branch = e () => (float[1] b) { b = Constant<value = float[1] {2.5}>() }> }",
        "bool c) => (float[1] y",
    )
    upcast(model)
    for condition, expected in ((True, 1.5), (False, 2.5)):
        (output,) = evaluate(ir.to_proto(model), {"c": np.array(condition)})
        assert (output.dtype, output.tolist()) == (np.float64, [expected])


def test_bfloat16_inputs_are_widened() -> None:
    model = parse("{ y = Neg(x) }", "bfloat16[2] x) => (bfloat16[2] y")
    assert run(model, x=np.array([1, 2], ml_dtypes.bfloat16)).tolist() == [-1, -2]


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("y = com.example.Odd(x)", "com.example::Odd has no float64 reference"),
        ("y = RandomNormalLike(x)", "RandomNormalLike is random"),
        (
            "s = Constant<value_float = 0.1>() q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)",
            "QuantizeLinear rounds to integers by design",
        ),
    ],
)
def test_what_float64_cannot_judge_is_named(node: str, reason: str) -> None:
    text = f'<ir_version: 9, opset_import: ["": 18, "com.example": 1]> g (float[2] x) => (float[2] y) {{ {node} }}'
    assert reason_against(ir.from_onnx_text(text)) == reason


def test_an_ordinary_model_can_be_judged() -> None:
    assert reason_against(parse("{ y = Relu(x) }")) is None
