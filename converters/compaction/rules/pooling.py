"""Rules for pooling: channels pass through; a constant stays one unless padding is averaged in."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import Constants, Facts
from converters.compaction.registry import Refusal, rule
from converters.compaction.relations import Relation, Tie
from converters.compaction.rules.common import axis_of, int_attribute, ints_attribute, same_rank, string_attribute


@rule("AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "GlobalLpPool")
def relate_pool(node: ir.Node) -> list[Relation] | Refusal:
    """x: [N, C, *space] -> y: [N, C, *space']; each channel by itself."""
    x, output = node.inputs[0], node.outputs[0]
    if x is None or not same_rank(x, output):
        return Refusal("the shapes around this pooling are not known")
    if any(extra.uses() for extra in node.outputs[1:]):
        return Refusal("the indices of this MaxPool are used; they count positions across channels")
    keeps_constants = _keeps_constants(node)

    def transfer(facts: Facts) -> Constants | None:
        axis = axis_of(x, 1)
        known = None if axis is None else facts.constants(axis)
        if known is None:
            return None
        return known if keeps_constants else np.where(known == 0, 0.0, np.nan)

    relations: list[Relation] = []
    for dim in (0, 1):
        source, target = axis_of(x, dim), axis_of(output, dim)
        if source is not None and target is not None:
            relations.append(Tie(node, [source], [target], transfer if dim == 1 else None))
    return relations


def _keeps_constants(node: ir.Node) -> bool:
    """Whether a constant channel stays the same constant at every position, borders included."""
    if node.op_type in ("GlobalAveragePool", "GlobalMaxPool"):
        return True
    if node.op_type == "MaxPool":
        # pads count as minus infinity; every window meets the input as long as a pad is shorter than the kernel and
        # neither holes in the window nor windows that hang over the end let it miss
        kernel = ints_attribute(node, "kernel_shape") or []
        pads = ints_attribute(node, "pads") or [0] * (2 * len(kernel))
        padded = any(pads) or string_attribute(node, "auto_pad", "NOTSET").startswith("SAME")
        holes = any(step > 1 for step in ints_attribute(node, "dilations") or [])
        if padded and (holes or int_attribute(node, "ceil_mode", 0)):
            return False
        return all(pad < kernel[i % len(kernel)] for i, pad in enumerate(pads))
    if node.op_type == "AveragePool":
        padded = any(ints_attribute(node, "pads") or []) or string_attribute(node, "auto_pad", "NOTSET").startswith(
            "SAME"
        )
        return not (int_attribute(node, "count_include_pad", 0) and (padded or int_attribute(node, "ceil_mode", 0)))
    return False
