"""With gates driven from outside, both forms of a model compute the same for any decision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from conditional_graphs import conditional_file, nested, normal, residual, run

from l0runtime.conditional import ConditionalModel, read_conditional
from l0runtime.conditional.forcing import force_gates, forced_inputs
from l0runtime.errors import ModelFileError, UnsupportedModelError


def described(path: Path, masked: onnx.ModelProto) -> tuple[onnx.ModelProto, ConditionalModel]:
    proto = conditional_file(path, masked)
    model = read_conditional({entry.key.removeprefix("l0runtime."): entry.value for entry in proto.metadata_props})
    assert model is not None
    return proto, model


@pytest.mark.parametrize("batch", ["N", 1])
@pytest.mark.parametrize("make", [residual, nested])
def test_any_decision_can_be_driven(tmp_path: Path, make: object, batch: str | int) -> None:
    masked = make(batch)  # type: ignore[operator]
    conditional, model = described(tmp_path / "model.onnx", masked)
    forced = [force_gates(proto, model) for proto in (masked, conditional)]
    rows = 1 if batch == 1 else 9
    generator = np.random.default_rng(0)
    for _ in range(6):
        feed = {"x": normal(rows, 4, 5, 5), "k": normal(rows, 1, 1, 1)}
        gates = {name: generator.integers(0, 2, rows).astype(np.float32) for name in forced_inputs(model).values()}
        expected, found = (run(proto, **feed, **gates)[0] for proto in forced)
        np.testing.assert_array_equal(found, expected)


def test_the_gates_own_opinion_does_not_matter(tmp_path: Path) -> None:
    masked = residual()
    conditional, model = described(tmp_path / "model.onnx", masked)
    x, (name,) = normal(3, 4, 5, 5), forced_inputs(model).values()
    closed = np.full((3, 1, 1, 1), -1, np.float32)
    found = run(force_gates(conditional, model), x=x, k=closed, **{name: np.ones(3, np.float32)})[0]
    np.testing.assert_array_equal(found, run(masked, x=x, k=-closed)[0])


def test_a_gate_that_is_not_there_is_named(tmp_path: Path) -> None:
    _, model = described(tmp_path / "model.onnx", residual())
    with pytest.raises(UnsupportedModelError) as caught:
        force_gates(residual(gate="other = Relu(k)  g2 = Identity(other)", tail="m = Mul(f, g2)  y = Add(x, m)"), model)
    assert str(caught.value) == "gate 'g': no node of the model computes it. Convert the model again."


def test_a_damaged_description_is_refused() -> None:
    with pytest.raises(ModelFileError) as caught:
        read_conditional({"conditional": '{"blocks": [{"name": "a"}]}'}, "m.onnx")
    assert str(caught.value).startswith("m.onnx: its description of conditional blocks is damaged (")
    assert read_conditional({}) is None
