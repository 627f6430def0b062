"""A block is found where, and only where, nothing but its gate's product reads it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conditional_graphs import CONVOLUTIONS, normal, residual

from converters.conditional.regions import find_regions


def found(model: onnx.ModelProto) -> list[tuple[str, ...]]:
    """The results of each block's operators."""
    regions = find_regions(ir.from_proto(model).graph)
    return [tuple(str(node.outputs[0].name) for node in region.nodes) for region in regions]


def test_the_block_is_what_only_the_product_reads() -> None:
    assert found(residual()) == [("h", "r", "f")]


@pytest.mark.parametrize(
    "gate",
    [
        "g = Relu(k)",
        "g = Clip(k, zero, one)",
        "c = Greater(k, zero)  g = Cast<to=1>(c)",
        "c = Not(b0)  b0 = Less(k, zero)  g = Where(c, k, zero)".replace(
            "c = Not(b0)  b0 = Less(k, zero)", "b0 = Less(k, zero)  c = Not(b0)"
        ),
        "s = Sign(k)  i = Sub(one, s)  g = Identity(i)",
        "g = HardSigmoid(k)",
        "g = Max(k, zero)",
        "u = Squeeze(k, last)  v = Relu(u)  g = Unsqueeze(v, last)",
    ],
)
def test_gates_of_many_kinds_are_recognised(gate: str) -> None:
    assert found(residual(gate=gate, one=np.float32(1), last=np.array([3]))) == [("h", "r", "f")]


@pytest.mark.parametrize(
    "gate", ["g = Sigmoid(k)", "g = Identity(k)", "g = Clip(k, half, one)", "g = Softmax<axis=0>(k)", "g = Tanh(k)"]
)
def test_what_is_hardly_ever_exactly_zero_is_no_gate(gate: str) -> None:
    assert found(residual(gate=gate, half=np.float32(0.5), one=np.float32(1))) == []


def test_one_number_per_channel_is_no_gate_of_a_sample() -> None:
    """Squeeze and excite."""
    masked = residual(gate="s = ReduceMean<keepdims=1>(x, space)  g = Relu(s)", space=np.array([2, 3]))
    assert found(masked) == []


def test_what_someone_else_reads_is_no_part_of_the_block() -> None:
    masked = residual(tail="m = Mul(f, g)  s = Add(x, m)  y = Add(s, h)")
    assert found(masked) == [("r", "f")]


def test_a_block_whose_result_someone_else_reads_is_none() -> None:
    assert found(residual(tail="m = Mul(f, g)  s = Add(x, m)  y = Add(s, f)")) == []


def test_what_a_subgraph_reads_is_no_part_of_the_block() -> None:
    tail = """
        m = Mul(f, g)  s = Add(x, m)
        y = If(yes) <then_branch = t () => (float[N,4,5,5] a) { a = Add(s, r) },
                     else_branch = e () => (float[N,4,5,5] b) { b = Identity(s) }>
    """
    assert found(residual(tail=tail, yes=np.array(True))) == [("f",)]


def test_an_output_of_the_model_is_no_part_of_the_block() -> None:
    masked = residual()
    masked.graph.output.append(onnx.helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, None))
    assert found(masked) == [("f",)]


def test_the_network_of_the_gate_is_no_part_of_the_block() -> None:
    masked = residual(
        gate="",
        block=f"{CONVOLUTIONS}  p = ReduceMean<keepdims=1>(r, all)  g = Relu(p)",
        all=np.array([1, 2, 3]),
    )
    assert found(masked) == [("f",)]


def test_random_numbers_are_drawn_whether_or_not_anyone_needs_them() -> None:
    assert found(residual(block="n = RandomNormalLike(x)  f = Mul(x, n)")) == []


def test_the_sum_with_a_shortcut_of_another_shape_stays_outside() -> None:
    masked = residual(tail="m = Mul(f, g)  y = Add(m, row)", row=normal(1, 4, 1, 1))
    (region,) = find_regions(ir.from_proto(masked).graph)
    assert [node.op_type for node in region.tail] == ["Mul"]
    assert region.skip is None


def test_a_selection_by_a_constant_or_an_input_is_left_alone() -> None:
    assert found(residual(gate="", tail="y = Where(mask, f, x)", mask=np.ones((1, 1, 1, 1), bool))) == []
