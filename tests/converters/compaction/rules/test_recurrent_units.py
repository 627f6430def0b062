"""Which units of a recurrence go: activations that are not zero at zero, layouts, and broken variants of the rule."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from small_graphs import LIMIT, compacted, difference, graph

from converters.compaction.rules import recurrent_units
from converters.compaction.rules.recurrent_units import Units

R = np.random.default_rng(3)
UNITS = 5


def closed_unit(kind: str, attributes: str = "", dtype: str = "double") -> onnx.ModelProto:
    """x: [S, N, 4]; unit 2 of 5 has zero weights and biases in every gate."""
    rows = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind] * UNITS
    w, rec, b = R.normal(size=(1, rows, 4)), R.normal(size=(1, rows, UNITS)), R.normal(size=(1, 2 * rows))
    for array in (w, rec, b):
        array[:, 2::UNITS] = 0
    numbers = {"w": w, "r": rec, "b": b, "w2": R.normal(size=(UNITS, 3))}
    real = np.float64 if dtype == "double" else np.float32
    return graph(
        f"({dtype}[6,2,4] x) => ({dtype}[6,1,2,3] y) {{ o = {kind}<hidden_size={UNITS}{attributes}>(x, w, r, b)"
        " y = MatMul(o, w2) }",
        **{name: array.astype(real) for name, array in numbers.items()},
    )


def width(model: onnx.ModelProto) -> int:
    node = next(node for node in model.graph.node if node.op_type in ("LSTM", "GRU", "RNN"))
    return int(next(a.i for a in node.attribute if a.name == "hidden_size"))


def in_onnxruntime(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize(
    ("kind", "activations", "units"),
    [
        ("RNN", '["Sigmoid"]', UNITS),  # one half at zero
        ("RNN", '["Relu"]', UNITS - 1),
        ("GRU", '["Sigmoid", "Sigmoid"]', UNITS),
        ("GRU", '["HardSigmoid", "Softsign"]', UNITS - 1),
        ("LSTM", '["Sigmoid", "Tanh", "Sigmoid"]', UNITS),
        ("LSTM", '["Sigmoid", "Sigmoid", "Tanh"]', UNITS),
        ("LSTM", '["Sigmoid", "Elu", "Softsign"]', UNITS - 1),
    ],
)
def test_a_state_stays_zero_only_with_activations_that_are_zero_at_zero(
    kind: str, activations: str, units: int
) -> None:
    model = closed_unit(kind, f", activations={activations}", "float")
    compact, _ = compacted(model)
    assert width(compact) == units
    x = R.normal(size=(6, 2, 4)).astype(np.float32)
    expected = in_onnxruntime(model, x)
    # float32: sums of at most 10 terms over 6 steps
    assert np.abs(in_onnxruntime(compact, x) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_units_go_where_the_batch_comes_first() -> None:
    numbers = {t.name: onnx.numpy_helper.to_array(t) for t in closed_unit("LSTM").graph.initializer}
    model = graph(
        f"(double[2,6,4] x) => (double[2,6,1,3] y) {{ o = LSTM<hidden_size={UNITS}, layout=1>(x, w, r, b)"
        " y = MatMul(o, w2) }",
        **numbers,
    )
    compact, _ = compacted(model)
    assert width(compact) == UNITS - 1
    assert difference(model, compact, x=R.normal(size=(2, 6, 4))) < LIMIT


def test_units_that_nobody_reads_stay_where_they_could_overflow() -> None:
    model = closed_unit("RNN", ', activations=["Relu"]')
    for tensor in model.graph.initializer:
        array = np.array(onnx.numpy_helper.to_array(tensor))
        if tensor.name == "r":
            array[:, :, 3] = 0
        if tensor.name == "w2":
            array[3] = 0
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    compact, _ = compacted(model)
    assert width(compact) == UNITS - 1  # unit 2 is zero and goes, unit 3 is only unread


def test_a_recurrence_whose_weights_are_computed_keeps_its_units() -> None:
    model = closed_unit("GRU")
    model.graph.input.append(onnx.helper.make_tensor_value_info("k", onnx.TensorProto.DOUBLE, [1]))
    model.graph.node[0].input[2] = "r_scaled"
    model.graph.node.insert(0, onnx.helper.make_node("Mul", ["r", "k"], ["r_scaled"]))
    compact, _ = compacted(model)
    assert width(compact) == UNITS
    x, k = R.normal(size=(6, 2, 4)), np.array([0.7])
    assert difference(model, compact, x=x, k=k) < LIMIT


def test_a_start_that_is_ignored_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model = closed_unit("GRU")
    model.graph.node[0].input.extend(["", "h0"])
    model.graph.initializer.append(onnx.numpy_helper.from_array(R.normal(size=(1, 2, UNITS)), "h0"))
    x = R.normal(size=(6, 2, 4))
    assert difference(model, compacted(model)[0], x=x) < LIMIT
    monkeypatch.setattr(Units, "_starts_at_zero", lambda self, facts: np.ones(self.count, bool))
    assert difference(model, compacted(model)[0], x=x) > 1e-3


def test_activations_that_are_ignored_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent_units, "_keeps_zero", lambda node: True)
    assert width(compacted(closed_unit("RNN", ', activations=["Sigmoid"]', "float"))[0]) == UNITS - 1
