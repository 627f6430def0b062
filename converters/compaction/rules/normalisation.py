"""Rules for normalisation: BatchNorm in evaluation is a per-channel affine function."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import Axis, Constants, Facts, Mask, axes_of
from converters.compaction.registry import Refusal, rule
from converters.compaction.relations import Relation, Tie
from converters.compaction.rules.common import constants_of, float_attribute, int_attribute, same_rank


@rule("BatchNormalization")
def relate_batch_norm(node: ir.Node) -> list[Relation] | Refusal:
    """x: [N, C, *space]; scale, bias, mean, variance: [C]; y = (x - mean) / sqrt(variance + eps) * scale + bias."""
    if int_attribute(node, "training_mode", 0):
        return Refusal("this BatchNormalization is in training mode")
    x, output = node.inputs[0], node.outputs[0]
    if x is None or not same_rank(x, output):
        return Refusal("the shapes around this BatchNormalization are not known")
    epsilon = float_attribute(node, "epsilon", 1e-5)
    scale, bias, mean, variance = node.inputs[1:5]

    def transfer(facts: Facts) -> Constants:
        size = Axis(output, 1).size
        s, b, m, v = (constants_of(facts, value, 0, size) for value in (scale, bias, mean, variance))
        c = constants_of(facts, x, 1, size)
        return np.where(s == 0, b, (c - m) / np.sqrt(v + epsilon) * s + b)

    def unread(facts: Facts, axis: Axis) -> Mask | None:
        # a zero scale hides the input, the mean and the variance
        hidden = axis.value in (x, mean, variance)
        return constants_of(facts, scale, 0, axis.size) == 0 if hidden else None

    relations: list[Relation] = []
    for axis in axes_of(output):
        source = Axis(x, axis.dim)
        if axis.dim == 1:
            parameters = [Axis(value, 0) for value in (scale, bias, mean, variance) if value is not None]
            relations.append(Tie(node, [source, *parameters], [axis], transfer, unread))
        else:
            relations.append(Tie(node, [source], [axis]))
    return relations
