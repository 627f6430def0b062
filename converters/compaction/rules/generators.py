"""Rules for operators that make numbers out of a shape: a constant one is known, and lengths stay as they are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import Facts, as_float64, axes_of
from converters.compaction.registry import Refusal, rule
from converters.compaction.relations import Relation


class _Filled(Relation):
    """One number fills the whole output."""

    def __init__(self, node: ir.Node, output: ir.Value, number: float) -> None:
        super().__init__(node, [])
        self._output, self._number = output, number

    def forward(self, facts: Facts) -> None:
        for axis in axes_of(self._output):
            facts.learn(axis, np.full(axis.size, self._number))
        facts.learn_scalar(self._output, self._number)


@rule("ConstantOfShape")
def relate_constant_of_shape(node: ir.Node) -> list[Relation]:
    """The number is an attribute, 0 by default; the lengths are computed, so every axis stays whole."""
    attribute = node.attributes.get("value")
    number = 0.0 if attribute is None else float(as_float64(attribute.as_tensor().numpy()).ravel()[0])
    return [_Filled(node, node.outputs[0], number)]


@rule(
    "Range", "EyeLike", "OneHot", "NonZero", "Unique", "Compress", "Bernoulli", "Multinomial",
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
)  # fmt: skip
def refuse_generator(node: ir.Node) -> Refusal:
    """What comes out depends on places, counts or draws, so everything keeps its place."""
    return Refusal(f"{node.op_type} makes its result from places, counts or random draws")
