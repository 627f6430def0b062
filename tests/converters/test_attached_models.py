"""Does a model with attached gates convert exactly, and to the cost that its gates promise?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gates.attachable import resnet, transformer

from converters import convert
from l0runtime.gates import attach, freeze
from l0runtime.measurement import count_cost


def close_some(gates) -> None:
    """In each vector of gates the first is closed and the last is fractional; the second block is closed."""
    with torch.no_grad():
        for gate in gates:
            if gate.size > 1:
                gate.log_alpha[0] = -3.0
                gate.log_alpha[-1] = 0.5
        blocks = [gate for gate in gates if gate.size == 1]
        blocks[1].log_alpha.fill_(-3.0)


@pytest.mark.parametrize(
    ("make", "shape", "frozen"),
    [(resnet, (1, 2, 6, 6), False), (transformer, (1, 5, 3), True)],
    ids=["resnet", "frozen transformer"],
)
def test_every_kind_of_gate_converts_exactly_to_the_promised_multiply_accumulates(
    make, shape, frozen, tmp_path: Path
) -> None:
    model, inputs = make()
    gates = attach(model, "auto", inputs)
    close_some(gates)
    if frozen:
        freeze(model)
    model.train()
    report = convert(model, tmp_path / "compact.onnx", example_inputs=inputs, gated_output=tmp_path / "gated.onnx")
    assert model.training
    gated, compact = (count_cost(tmp_path / f"{name}.onnx", shapes={"x": shape}) for name in ("gated", "compact"))
    assert gated.macs == gates.costs["macs"].total
    # exact, but for float32: the cost of what is kept is a sum of products of counts
    assert compact.macs == pytest.approx(
        gates.costs["macs"].total * float(gates.costs["macs"].fraction(gates.kept_shares())), rel=1e-5
    )
    assert [group.layer for group in report.gates] == [gate.place.name for gate in gates]
