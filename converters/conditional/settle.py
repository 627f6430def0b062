"""Which input-dependent gates do not depend on the input after all?

A gate whose network can only say no removes its block; one that can only say yes is no gate. Proved from the weights
(bounds.py), before anything is compacted: the compaction then removes what has become useless.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from converters.compaction.names import register_initializer
from converters.compaction.shape_inference import infer_missing_shapes
from converters.conditional.bounds import Bounds
from converters.conditional.outline import name_of
from converters.conditional.regions import Region, all_regions


@dataclass(frozen=True)
class Settled:
    """A gate that always decides alike."""

    name: str
    fires: bool

    def note(self) -> str:
        """One line for the report."""
        if self.fires:
            return f"{self.name}: its gate fires for every input, so it runs unconditionally"
        return f"{self.name}: its gate fires for no input, so it was removed"


def settle_gates(model: ir.Model) -> tuple[Settled, ...]:
    """Replace, in place, every conditional gate that provably is always exactly 0, or always exactly 1."""
    if model.functions:
        passes.InlinePass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    infer_missing_shapes(model)
    bounds, settled = Bounds(), []
    for region in all_regions(model.graph):
        if region.tail[0].graph is None:
            continue  # the other branch of a Where that is settled
        number = bounds.of(region.gate).number
        if number not in (0.0, 1.0):
            continue
        fires = bool(number) == region.runs_if_true
        settled.append(Settled(name_of(region), fires))
        _settle(model.graph, region, fires)
    return tuple(settled)


def _settle(graph: ir.Graph, region: Region, fires: bool) -> None:
    first = region.tail[0]
    if fires or region.is_selection:
        skip = region.skip
        assert fires or skip is not None
        # an Identity rather than the value itself: the result may be an output of the model
        kept = region.block if fires else skip
        first.outputs[0].name, name = f"{first.outputs[0].name}.masked", first.outputs[0].name
        copy = ir.node("Identity", [kept], name=f"{first.name}.settled")
        result = copy.outputs[0]
        result.name, result.type, result.shape = name, first.outputs[0].type, first.outputs[0].shape
        graph.insert_before(first, copy)
        first.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
        graph.remove(first, safe=True)
        return
    gate = region.gate
    assert gate.dtype is not None
    array = np.zeros([1] * len(gate.shape or ()), gate.dtype.numpy())
    tensor = ir.Tensor(array, name=f"{gate.name}.never")
    value = ir.Value(
        name=f"{gate.name}.never", shape=ir.Shape(array.shape), type=ir.TensorType(gate.dtype), const_value=tensor
    )
    register_initializer(graph, value)
    first.replace_input_with(region.gate_slot, value)
