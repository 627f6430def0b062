"""Branches compute what masking computes, for every share of samples that run, and hold their own weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conditional_graphs import branches, choose, evaluate, inferred, nested, normal, outlined, residual, run
from small_graphs import graph

from converters.compaction import compact
from converters.conditional.outline import outline

RATES = (0.0, 0.25, 0.5, 0.75, 1.0)
BATCHES = (1, 2, 7, 32)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("rate", RATES)
def test_a_branch_equals_masking_bit_by_bit_for_every_rate_and_batch(batch: int, rate: float) -> None:
    masked = residual()
    conditional, _ = outlined(masked)
    feed = {"x": normal(batch, 4, 5, 5), "k": choose(batch, rate)}
    np.testing.assert_array_equal(run(conditional, **feed)[0], run(masked, **feed)[0])
    # float32 sums of 36 products in NumPy against onnxruntime
    np.testing.assert_allclose(run(conditional, **feed)[0], evaluate(masked, **feed)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("runs", [-1.0, 0.0, 0.5, 1.0])
def test_a_batch_of_one_becomes_a_plain_if(runs: float) -> None:
    masked = residual(batch=1)
    conditional, (block,) = outlined(masked)
    assert block.form == "single"
    assert "NonZero" not in [node.op_type for node in conditional.graph.node]
    feed = {"x": normal(1, 4, 5, 5), "k": np.full((1, 1, 1, 1), runs, np.float32)}
    np.testing.assert_array_equal(run(conditional, **feed)[0], run(masked, **feed)[0])


def test_a_fixed_batch_runs_any_of_its_samples() -> None:
    masked = residual(batch=3)
    conditional, (block,) = outlined(masked)
    assert block.form == "samples"
    feed = {"x": normal(3, 4, 5, 5), "k": choose(3, 0.34)}
    np.testing.assert_array_equal(run(conditional, **feed)[0], run(masked, **feed)[0])


def test_a_gate_between_0_and_1_multiplies_what_the_block_gives() -> None:
    masked = residual(gate="g = Clip(k, zero, half)", half=np.float32(0.5))
    conditional, (block,) = outlined(masked)
    assert not block.is_binary
    k = np.array([0.25, -1, 9, 0], np.float32).reshape(4, 1, 1, 1)
    feed = {"x": normal(4, 4, 5, 5), "k": k}
    np.testing.assert_array_equal(run(conditional, **feed)[0], run(masked, **feed)[0])


def test_a_step_of_0_or_1_is_not_multiplied() -> None:
    masked = residual(gate="c = Greater(k, zero)  g = Cast<to=1>(c)")
    conditional, (block,) = outlined(masked)
    assert block.is_binary
    assert "Mul" not in {node.op_type for node in ir.from_proto(conditional).graph.all_nodes()}
    feed = {"x": normal(5, 4, 5, 5), "k": choose(5, 0.4)}
    np.testing.assert_array_equal(run(conditional, **feed)[0], run(masked, **feed)[0])


@pytest.mark.parametrize("tail", ["m = Mul(f, g)  y = Add(m, x)", "m = Mul(g, f)  y = Add(x, m)"])
def test_operands_may_stand_in_either_order(tail: str) -> None:
    masked = residual(tail=tail)
    conditional, _ = outlined(masked)
    feed = {"x": normal(5, 4, 5, 5), "k": choose(5, 0.4)}
    np.testing.assert_array_equal(run(conditional, **feed)[0], run(masked, **feed)[0])


@pytest.mark.parametrize("batch", ["N", 1])
def test_without_a_shortcut_skipping_gives_zeros_to_what_follows(batch: str | int) -> None:
    """A normalisation behind the mask turns the zeros into a constant; an activation follows."""
    masked = residual(
        batch,
        tail="m = Mul(f, g)  n = BatchNormalization(m, scale, bias, mean, var)  y = Relu(n)",
        scale=normal(4),
        bias=normal(4),
        mean=normal(4),
        var=np.abs(normal(4)) + 1,
    )
    conditional, _ = outlined(masked)
    for rate in RATES:
        rows = 6 if batch == "N" else 1
        feed = {"x": normal(rows, 4, 5, 5), "k": choose(rows, rate)}
        np.testing.assert_array_equal(run(conditional, **feed)[0], run(masked, **feed)[0])


@pytest.mark.parametrize("batch", ["N", 1])
@pytest.mark.parametrize("branches_of_where", ["f, x", "x, f"])
def test_a_selection_runs_the_branch_that_is_taken(branches_of_where: str, batch: str | int) -> None:
    masked = residual(batch, gate="c = Greater(k, zero)", tail=f"y = Where(c, {branches_of_where})")
    conditional, (block,) = outlined(masked)
    assert block.runs_if_true == (branches_of_where == "f, x")
    for rate in RATES:
        rows = 6 if batch == "N" else 1
        feed = {"x": normal(rows, 4, 5, 5), "k": choose(rows, rate)}
        np.testing.assert_array_equal(run(conditional, **feed)[0], run(masked, **feed)[0])


def test_a_selection_is_exact_where_the_unused_branch_is_infinite() -> None:
    masked = residual(gate="c = Greater(k, zero)", block="e = Exp(x)  f = Exp(e)", tail="y = Where(c, f, x)")
    conditional, _ = outlined(masked)
    feed = {"x": np.full((2, 4, 5, 5), 50, np.float32), "k": np.array([1, -1], np.float32).reshape(2, 1, 1, 1)}
    np.testing.assert_array_equal(run(conditional, **feed)[0], run(masked, **feed)[0])


def test_an_infinite_block_is_not_a_number_where_masked_and_the_shortcut_where_skipped() -> None:
    """The one difference: 0 times infinity."""
    masked = residual(block="e = Exp(x)  f = Exp(e)")
    conditional, _ = outlined(masked)
    feed = {"x": np.full((1, 4, 5, 5), 50, np.float32), "k": np.zeros((1, 1, 1, 1), np.float32)}
    assert np.isnan(run(masked, **feed)[0]).all()
    np.testing.assert_array_equal(run(conditional, **feed)[0], feed["x"])


def test_the_weights_lie_in_the_branch_and_nowhere_else() -> None:
    conditional, (block,) = outlined(residual())
    (branch,) = branches(conditional)
    then = next(attribute.g for attribute in branch.attribute if attribute.name == "then_branch")
    assert {"w1", "b1", "w2", "b2"} <= {tensor.name for tensor in then.initializer}
    assert not {"w1", "b1", "w2", "b2"} & {tensor.name for tensor in conditional.graph.initializer}
    assert block.parameters == 2 * (4 * 4 * 9 + 4)


def test_a_weight_that_others_read_is_copied_into_the_branch() -> None:
    masked = residual(tail="m = Mul(f, g)  s = Add(x, m)  y = Conv<pads=[1,1,1,1]>(s, w1, b1)")
    conditional, _ = outlined(masked)
    assert "w1" in {tensor.name for tensor in conditional.graph.initializer}
    feed = {"x": normal(5, 4, 5, 5), "k": choose(5, 0.4)}
    np.testing.assert_array_equal(run(conditional, **feed)[0], run(masked, **feed)[0])


def test_nothing_of_a_skipped_block_is_computed() -> None:
    """A Gather in the block has an index that exists for some samples only: onnxruntime fails where it runs."""
    masked = inferred(
        graph(
            """(float[N,3] x, float[N,1] k, int64[N,1] i) => (float[N,3] y) {
                g = Relu(k)  t = GatherElements<axis=1>(x, i)  f = Mul(t, ones)  m = Mul(f, g)  y = Add(x, m)
            }""",
            ones=np.ones((1, 3), np.float32),
        )
    )
    conditional, _ = outlined(masked)
    feed = {"x": normal(2, 3), "k": np.array([[1], [-1]], np.float32), "i": np.array([[2], [99]], np.int64)}
    with pytest.raises(Exception, match="Out of range"):
        run(masked, **feed)
    expected = feed["x"] + feed["x"][:, 2:] * np.array([[1], [0]], np.float32)
    np.testing.assert_array_equal(run(conditional, **feed)[0], expected)


def test_a_block_that_mixes_samples_runs_whole_or_not_at_all() -> None:
    masked = residual(
        block="h = Conv<pads=[1,1,1,1]>(x, w1, b1)  a = ReduceMean<keepdims=1>(h, first)  f = Sub(h, a)",
        first=np.array([0]),
    )
    conditional, (block,) = outlined(masked)
    assert block.form == "batch"
    assert block.reason == "ReduceMean a mixes samples, or may"
    for rate in RATES:
        feed = {"x": normal(6, 4, 5, 5), "k": choose(6, rate)}
        np.testing.assert_array_equal(run(conditional, **feed)[0], run(masked, **feed)[0])


def test_attention_runs_for_some_sequences() -> None:
    """A transformer's feed-forward and attention: shapes in them name the batch, and are written anew."""
    masked = inferred(
        graph(
            """(float[N,6,8] x, float[N,1,1] k) => (float[N,6,8] y) {
                g = Relu(k)
                q0 = MatMul(x, wq)  q1 = Reshape(q0, heads)  q = Transpose<perm=[0,2,1,3]>(q1)
                v0 = MatMul(x, wv)  v1 = Reshape(v0, heads)  v = Transpose<perm=[0,2,1,3]>(v1)
                t = Transpose<perm=[0,1,3,2]>(q)  s = MatMul(q, t)  p = Softmax<axis=-1>(s)  o0 = MatMul(p, v)
                o1 = Transpose<perm=[0,2,1,3]>(o0)  o2 = Reshape(o1, back)  f = MatMul(o2, wo)
                m = Mul(f, g)  y = Add(x, m)
            }""",
            wq=normal(8, 8),
            wv=normal(8, 8),
            wo=normal(8, 8),
            heads=np.array([0, 6, 2, 4]),
            back=np.array([0, 6, 8]),
        )
    )
    model = compact(ir.from_proto(masked)).model  # infers shapes that onnx alone does not
    (block,) = outline(model)
    conditional = ir.to_proto(model)
    assert block.form == "samples", block.reason
    for rate in RATES:
        feed = {"x": normal(6, 6, 8), "k": choose(6, rate).reshape(6, 1, 1)}
        # onnxruntime multiplies matrices of other sizes in another order
        np.testing.assert_allclose(run(conditional, **feed)[0], run(masked, **feed)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", ["N", 1])
def test_blocks_within_blocks_become_branches_within_branches(batch: str | int) -> None:
    masked = nested(batch)
    conditional, (outer, inner) = outlined(masked)
    assert (outer.parent, inner.parent) == (None, 0)
    assert len(branches(conditional)) == 1
    for rate in RATES:
        for _ in range(3):
            rows = 8 if batch == "N" else 1
            feed = {"x": normal(rows, 4, 5, 5), "k": choose(rows, rate)}
            np.testing.assert_array_equal(run(conditional, **feed)[0], run(masked, **feed)[0])


def test_decisions_of_inner_blocks_are_told_for_all_samples() -> None:
    masked = nested()
    conditional, (outer, inner) = outlined(masked)
    for name in (outer.decision, inner.decision):
        conditional.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N"]))
    masked.graph.output.append(onnx.helper.make_tensor_value_info("gi", onnx.TensorProto.FLOAT, ["N", 1, 1, 1]))
    feed = {"x": normal(9, 4, 5, 5), "k": choose(9, 0.6)}
    _, of_outer, of_inner = run(conditional, **feed)
    expected_outer = feed["k"].reshape(-1) > 0
    np.testing.assert_array_equal(of_outer != 0, expected_outer)
    np.testing.assert_array_equal(of_inner != 0, expected_outer & (run(masked, **feed)[1].reshape(-1) > 0))


def test_blocks_in_a_row_read_each_others_results() -> None:
    text = "".join(
        f"c{n} = Conv<pads=[1,1,1,1]>(x{n}, w{n})  s{n} = ReduceMean<keepdims=1>(x{n}, all)  g{n} = Relu(s{n})  "
        f"m{n} = Mul(c{n}, g{n})  x{n + 1} = Add(x{n}, m{n})  "
        for n in range(3)
    )
    masked = inferred(
        graph(
            f"(float[N,4,5,5] x0) => (float[N,4,5,5] x3) {{ {text} }}",
            all=np.array([1, 2, 3]),
            **{f"w{n}": 0.2 * normal(4, 4, 3, 3) for n in range(3)},
        )
    )
    conditional, blocks = outlined(masked)
    assert len(blocks) == len(branches(conditional)) == 3
    for _ in range(5):
        x = normal(7, 4, 5, 5)
        np.testing.assert_array_equal(run(conditional, x0=x)[0], run(masked, x0=x)[0])


def test_blocks_can_be_left_masked_by_name() -> None:
    model = ir.from_proto(residual())
    assert outline(model, keep_masked=["f"]) == ()
    assert [node.op_type for node in model.graph] == ["Relu", "Conv", "Relu", "Conv", "Mul", "Add"]


def test_a_branch_with_wrong_rows_would_be_noticed() -> None:
    """The comparison above must be able to fail: the indices of the samples are turned round."""
    masked = residual()
    conditional, _ = outlined(masked)
    position = next(n for n, node in enumerate(conditional.graph.node) if node.op_type == "Transpose")
    node = conditional.graph.node[position]
    turned = onnx.helper.make_node("Slice", [node.input[0], "from", "to", "axis", "step"], ["turned"])
    for name, number in (("from", -1), ("to", -99), ("axis", 1), ("step", -1)):
        conditional.graph.initializer.append(onnx.numpy_helper.from_array(np.array([number], np.int64), name))
    conditional.graph.node.insert(position, turned)
    node.input[0] = "turned"
    feed = {"x": normal(8, 4, 5, 5), "k": choose(8, 0.5)}
    assert np.abs(run(conditional, **feed)[0] - run(masked, **feed)[0]).max() > 0.1
