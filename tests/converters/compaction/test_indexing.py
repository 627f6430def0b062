"""Do Slice, Split and Gather take the same numbers after their source has been cut?"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_graphs import LIMIT, compacted, difference, graph, operators, shapes

RNG = np.random.default_rng(4)


def sliced(start: int, end: int, step: int, closed: list[int]) -> onnx.ModelProto:
    gate = np.ones(8)
    gate[closed] = 0
    taken = np.arange(8)[start : (end if end > -100 else None) : step]
    return graph(
        """(double[N,6] x) => (double[N,3] y) {
            h = MatMul(x, w1)  g = Mul(h, z)  s = Slice(g, start, end, axis, step)  y = MatMul(s, w2)
        }""",
        w1=RNG.standard_normal((6, 8)),
        z=gate,
        start=np.array([start]),
        end=np.array([end]),
        axis=np.array([1]),
        step=np.array([step]),
        w2=RNG.standard_normal((taken.size, 3)),
    )


@pytest.mark.parametrize(
    ("start", "end", "step", "closed", "width"),
    [
        (7, -100, -1, [0, 3, 7], 5),  # reversed: 6 5 4 2 1
        (0, 8, 2, [1, 3, 5, 7], 4),  # 0 2 4 6, what lies between is closed
        (0, 8, 2, [2], 3),  # 0 4 6
        (-1, -100, -2, [1, 6], 3),  # 7 5 3
        (2, 7, 1, [4], 4),  # 2 3 5 6
    ],
)
def test_slice_takes_the_survivors(start: int, end: int, step: int, closed: list[int], width: int) -> None:
    model = sliced(start, end, step, closed)
    compact, _ = compacted(model)
    assert (width, 3) in shapes(compact).values()
    assert difference(model, compact, x=RNG.standard_normal((2, 6))) < LIMIT


def test_uneven_survivors_between_steps_turn_the_slice_into_a_gather() -> None:
    """An output keeps the whole axis except index 5, so that 0 2 4 6 now lie at 0 2 4 5."""
    model = sliced(0, 8, 2, [5])
    model.graph.node.append(onnx.helper.make_node("MatMul", ["g", "w3"], ["v"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("v", onnx.TensorProto.DOUBLE, ["N", 2]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(RNG.standard_normal((8, 2)), "w3"))
    compact, _ = compacted(model)
    assert "Slice" not in operators(compact)
    assert (6, 7) in shapes(compact).values()
    assert difference(model, compact, x=RNG.standard_normal((2, 6))) < LIMIT


def test_parts_of_length_one_keep_their_index_and_let_others_go() -> None:
    gate = np.array([1.0, 1.0, 0.0, 1.0, 0.0])
    model = graph(
        """(double[N,6] x) => (double[N,1] p, double[N,2] y) {
            h = MatMul(x, w1)  g = Mul(h, z)  p, q = Split<axis=1>(g, lengths)  y = MatMul(q, w2)
        }""",
        w1=RNG.standard_normal((6, 5)),
        z=gate,
        lengths=np.array([1, 4]),
        w2=RNG.standard_normal((4, 2)),
    )
    compact, _ = compacted(model)
    assert (6, 3) in shapes(compact).values()
    assert difference(model, compact, x=RNG.standard_normal((2, 6))) < LIMIT


def test_part_of_a_split_of_which_nothing_stays_is_no_output_any_more() -> None:
    gate = np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    model = graph(
        """(double[N,6] x) => (double[N,2] y) {
            h = MatMul(x, w1)  g = Mul(h, z)  a, b, c = Split<axis=1, num_outputs=3>(g)
            t = Tanh(b)  s = Concat<axis=1>(c, t, a)  y = MatMul(s, w2)
        }""",
        w1=RNG.standard_normal((6, 6)),
        z=gate,
        w2=RNG.standard_normal((6, 2)),
    )
    compact, _ = compacted(model)
    (split,) = [node for node in compact.graph.node if node.op_type == "Split"]
    assert len(split.output) == 2
    assert difference(model, compact, x=RNG.standard_normal((2, 6))) < LIMIT


def test_gather_of_one_index_follows_it_to_its_new_place() -> None:
    model = graph(
        """(double[N,6] x) => (double[N] y, double[N,2] v) {
            h = MatMul(x, w1)  g = Mul(h, z)  y = Gather<axis=1>(g, k)  v = MatMul(g, w2)
        }""",
        w1=RNG.standard_normal((6, 5)),
        z=np.array([0.0, 1.0, 0.0, 1.0, 1.0]),
        k=np.array(-2),
        w2=RNG.standard_normal((5, 2)),
    )
    compact, _ = compacted(model)
    (index,) = [t for t in compact.graph.initializer if t.data_type == onnx.TensorProto.INT64]
    assert int(onnx.numpy_helper.to_array(index)) == 1  # of 1 3 4
    assert difference(model, compact, x=RNG.standard_normal((2, 6))) < LIMIT
    index.CopyFrom(onnx.numpy_helper.from_array(np.array(2), index.name))
    assert difference(model, compact, x=RNG.standard_normal((2, 6))) > 0.1
