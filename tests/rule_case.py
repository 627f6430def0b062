"""One rule on one small float64 graph: build it, compact it, run both in the reference evaluator of ONNX."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from converters.compaction import compact
from converters.compaction.registry import FIXUPS, RULES

Array = NDArray[np.float64]

# float64 sums of at most a few dozen terms in another order
TOLERANCE = 1e-12


def build(text: str, opset: int = 20, **weights: NDArray[np.generic] | list[int] | float) -> onnx.ModelProto:
    """A model from ONNX text `(inputs) => (outputs) { nodes }`; floats become float64, integers int64.

    float16 and float32 weights keep their type.
    """
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> g {text}')
    for name, value in weights.items():
        array = np.asarray(value)
        if array.dtype not in (np.float16, np.float32):
            array = array.astype(np.int64) if array.dtype.kind == "i" else array.astype(np.float64)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def compacted(model: onnx.ModelProto, *, check: bool = True) -> onnx.ModelProto:
    """The compact model, checked unless the checker refuses the operator itself; the argument is left alone."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    result = ir.to_proto(compact(ir.from_proto(copy)).model)
    if check:
        onnx.checker.check_model(result, full_check=True)
    return result


def run(model: onnx.ModelProto, x: Array) -> Array:
    """The first output for the only input."""
    (name,) = [value.name for value in model.graph.input]
    return np.asarray(ReferenceEvaluator(model).run(None, {name: x})[0])


def sizes(model: onnx.ModelProto) -> list[tuple[int, ...]]:
    """Shapes of all float initializers with more than one entry, sorted."""
    floats = [t for t in model.graph.initializer if t.data_type != onnx.TensorProto.INT64]
    return sorted(tuple(t.dims) for t in floats if np.prod(t.dims) > 1)


def difference(before: onnx.ModelProto, x: Array) -> float:
    """Largest difference between the model and its compact form, relative to the scale of the output."""
    expected = run(before, x)
    return float(np.abs(run(compacted(before), x) - expected).max() / np.abs(expected).max())


def without_fixup(monkeypatch: pytest.MonkeyPatch, *operators: str) -> None:
    """Break rules by leaving out what they do to the graph."""
    for operator in operators:
        monkeypatch.delitem(FIXUPS, operator)


def with_rule(monkeypatch: pytest.MonkeyPatch, operator: str, rule: Callable[..., object]) -> None:
    """Break a rule by another one."""
    monkeypatch.setitem(RULES, operator, rule)  # type: ignore[arg-type]
