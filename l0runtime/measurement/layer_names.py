"""Which layer of a model does a node of onnxruntime's optimised graph come from, and how much work is that layer?

onnxruntime renames what it fuses: a convolution in blocked layout is called after the value that it now gives
(`relu_44_nchwc`), a product with an activation `fused NODE`, one with a scale `NODE/MatMulScaleFusion/`. Undoing that
leads to a node or a value of the file; from a value the way goes back through elementwise operators to the contraction.
Its weight carries the module's name (`layer3.0.conv2.weight`), which is what a reader knows; where the exporter has
renamed the weight (`val_46`), its record of scopes does.

The work counted is the layer's own: a blocked convolution also computes the channels that fill up its last block.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from l0runtime.measurement.cost import count_cost

if TYPE_CHECKING:
    import onnx

_DECORATIONS = re.compile(r"^fused |(_token_\d+|_nchwc|/\w+Fusion/)$")
_CONTRACTIONS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# what onnxruntime fuses into the contraction in front of it
_FUSED = frozenset({"Add", "BatchNormalization", "Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
_MOST_STEPS = 3
_SCOPES = "pkg.torch.onnx.name_scopes"  # written by torch.onnx.export


@dataclass(frozen=True)
class LayerOfFile:
    """A contraction of the model's file.

    Attributes:
        name: the module's where its weight tells it, else the node's.
        macs: multiply-accumulates at the shapes asked for; None where they cannot be counted.
        weight_bytes: of its weight; 0 where it has none (a product of two activations).
    """

    name: str
    macs: int | None
    weight_bytes: int = 0


class LayerNames:
    """Finds layers by the names that onnxruntime's profile gives.

    Args:
        proto: the model, weights not needed.
        shapes: of its inputs.
        like: of the model that this one was made from: a weight that was rewritten has lost its name, but the node kept
            its own.
    """

    def __init__(
        self, proto: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], *, like: LayerNames | None = None
    ) -> None:
        self._like = like
        self._by_name: dict[str, onnx.NodeProto] = {node.name: node for node in proto.graph.node if node.name}
        self._by_output: dict[str, onnx.NodeProto] = {
            output: node for node in proto.graph.node for output in node.output
        }
        self._weights = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._macs = {cost.name: cost.macs for cost in count_cost(proto, shapes=shapes).nodes}

    def find(self, profiled: str) -> LayerOfFile | None:
        """The layer of a profiled node's name; None for a node that is no contraction of the file."""
        from onnx.helper import tensor_dtype_to_np_dtype

        node = self._node_of(profiled)
        for _ in range(_MOST_STEPS):
            if node is None or node.op_type in _CONTRACTIONS:
                break
            before = [self._by_output[name] for name in node.input if name in self._by_output]
            # an Add of two branches is not traced: it does not tell which of them it was fused into
            node = before[0] if node.op_type in _FUSED and len(before) == 1 else None
        if node is None or node.op_type not in _CONTRACTIONS:
            return None
        weights = [self._weights[name] for name in node.input[:2] if name in self._weights]
        size = sum(math.prod(tensor.dims) * tensor_dtype_to_np_dtype(tensor.data_type).itemsize for tensor in weights)
        return LayerOfFile(self.name_of(node), self._macs.get(node.name or node.output[0]), size)

    def name_of(self, node: onnx.NodeProto) -> str:
        """The module's name by its weight, by the model this was made from or by torch's record, else the node's."""
        for name in node.input[:2]:
            stem, dot, last = name.rpartition(".")
            if name in self._weights and dot and last.startswith("weight"):
                return str(stem)
        if self._like is not None and (origin := self._like._by_name.get(node.name)) is not None:
            return self._like.name_of(origin)
        own = str(node.name or node.output[0])
        scope = _scope_of(node)
        if not scope:
            return own
        # a product of two activations, as in attention, is not all of its module
        return scope if any(name in self._weights for name in node.input[:2]) else f"{scope}: {own}"

    def _node_of(self, profiled: str) -> onnx.NodeProto | None:
        name = profiled
        while name not in self._by_name and name not in self._by_output:
            shorter = _DECORATIONS.sub("", name)
            if shorter == name:
                return None
            name = shorter
        # a value's name counts first: a blocked convolution is called after its value
        if profiled.endswith("_nchwc") and name in self._by_output:
            return self._by_output[name]
        return self._by_name.get(name) or self._by_output.get(name)


def _scope_of(node: onnx.NodeProto) -> str:
    """The innermost module in torch's record, as "['', 'model', 'model.layers.0.q_proj', 'linear']"; or nothing."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            try:
                scopes = ast.literal_eval(entry.value)
            except (SyntaxError, ValueError):
                return ""
            return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) > 1 else ""
    return ""
