"""Multiply-accumulates and parameters, each expected value computed by hand."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest

from l0runtime.errors import InputError
from l0runtime.measurement.cost import count_cost

HEADER = '<ir_version: 8, opset_import: ["": 17]>'


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f"{HEADER} {text}")


def test_grouped_convolution_contracts_only_its_own_group() -> None:
    # 6 output channels, 2 groups: each output sees 8 / 2 = 4 channels of a 3x3 window; stride 2 makes 5x5 of 9x9
    model = parse(
        """g (float[N,8,9,9] x, float[6,4,3,3] w, float[6] b) => (float[N,6,5,5] y) {
            y = Conv <group=2, pads=[1,1,1,1], strides=[2,2]> (x, w, b)
        }"""
    )
    cost = count_cost(model, batch=3)
    assert cost.macs == 3 * (6 * 5 * 5) * (4 * 3 * 3)
    assert cost.flops == 2 * cost.macs
    assert [(node.name, node.op_type) for node in cost.nodes] == [("y", "Conv")]
    assert cost.uncounted == ()


def test_transposed_convolution_spreads_every_input_element() -> None:
    model = parse("g (float[1,4,5,5] x, float[4,3,2,2] w) => (float[1,3,6,6] y) { y = ConvTranspose (x, w) }")
    assert count_cost(model).macs == (4 * 5 * 5) * (3 * 2 * 2)


def test_gemm_contracts_the_transposed_side_where_its_flag_says_so() -> None:
    plain = parse("g (float[N,7] x, float[7,5] w) => (float[N,5] y) { y = Gemm (x, w) }")
    transposed = parse("g (float[7,N] x, float[5,7] w) => (float[N,5] y) { y = Gemm <transA=1, transB=1> (x, w) }")
    assert count_cost(plain, batch=2).macs == 2 * 5 * 7
    assert count_cost(transposed, dims={"N": 2}).macs == 2 * 5 * 7


def test_matmul_multiplies_over_broadcast_leading_dimensions() -> None:
    model = parse("g (float[N,4,6,8] a, float[8,3] b) => (float[N,4,6,3] y) { y = MatMul (a, b) }")
    assert count_cost(model, batch=2).macs == (2 * 4 * 6 * 3) * 8


def test_einsum_costs_the_product_of_all_its_indices() -> None:
    model = parse(
        'g (float[2,3,4] a, float[2,4,5] b) => (float[2,3,5] y) { y = Einsum <equation="bij,bjk->bik"> (a, b) }'
    )
    assert count_cost(model).macs == 2 * 3 * 4 * 5


def test_lstm_multiplies_input_and_state_by_all_four_gates_each_step() -> None:
    model = parse(
        """g (float[6,2,3] x, float[1,20,3] w, float[1,20,5] r) => (float[6,1,2,5] y) {
            y = LSTM <hidden_size=5> (x, w, r)
        }"""
    )
    assert count_cost(model).macs == 6 * 2 * (20 * 3 + 20 * 5)


def test_a_contraction_of_unknown_shape_is_listed_not_taken_as_zero() -> None:
    model = parse(
        "g (float[2,8] x, float[8,8] w) => (float[A,B] y) { k = NonZero (x) r = Cast <to=1> (k) y = MatMul (r, w) }"
    )
    cost = count_cost(model)
    assert cost.macs == 0
    assert cost.uncounted == ("y (MatMul)",)


def test_shapes_follow_the_given_input_sizes_through_reshape_chains() -> None:
    model = parse(
        """g (float[N,3,H,W] x, float[4,3,1,1] w) => (float[N,C] y)
        <int64[1] zero={0}, int64[1] rest={-1}> {
            c = Conv (x, w)
            s = Shape (c)
            n = Gather (s, zero)
            t = Concat <axis=0> (n, rest)
            f = Reshape (c, t)
            y = Gemm <transB=1> (f, f)
        }"""
    )
    cost = count_cost(model, batch=2, dims={"H": 5, "W": 6})
    assert cost.macs == 2 * 4 * 5 * 6 * 3 + 2 * 2 * (4 * 5 * 6)


def test_local_functions_are_counted_where_they_are_called() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[N,4] x, float[4,4] w) => (float[N,4] y) { a = local.f (x, w) y = local.f (a, w) }
        <domain: "local", opset_import: ["": 17]> f (p, q) => (r) { r = MatMul (p, q) }"""
    )
    assert count_cost(model, batch=3).macs == 2 * (3 * 4 * 4)


def test_parameters_are_weights_without_shape_operands_and_scalars() -> None:
    model = parse(
        """g (float[N,4] x) => (float[N,2] y)
        <float[4,2] w={1,2,3,4,5,6,7,8}, int64[2] shape={-1,2}, float eps={0.1}> {
            a = MatMul (x, w)
            b = Add (a, eps)
            c = Constant <value = float[2] {1.0, 2.0}> ()
            d = Add (b, c)
            y = Reshape (d, shape)
        }"""
    )
    cost = count_cost(model)
    assert cost.parameters == 4 * 2 + 2
    assert cost.weight_bytes == 4 * (4 * 2 + 2)


def test_big_weights_are_counted_without_carrying_them_through_inference() -> None:
    model = parse("g (float[N,64] x, float[64,64] w) => (float[N,64] y) { y = MatMul (x, w) }")
    del model.graph.input[1]
    model.graph.initializer.append(onnx.helper.make_tensor("w", 1, [64, 64], b"\0" * (64 * 64 * 4), raw=True))
    before = model.SerializeToString()
    cost = count_cost(model, batch=2)
    assert (cost.parameters, cost.macs) == (64 * 64, 2 * 64 * 64)
    assert model.SerializeToString() == before


def test_a_dynamic_dimension_without_a_size_is_refused() -> None:
    model = parse("g (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu (x) }")
    with pytest.raises(InputError) as caught:
        count_cost(model)
    assert str(caught.value) == (
        "input 'x': dimension 2 (H) is dynamic and has no size. "
        "Give the size H=N or the whole shape, such as x=1x3x1x1."
    )
