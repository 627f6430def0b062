"""Where do the factors of a dimension stand behind Transposes and Reshapes?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import Constants
from converters.compaction.dimensions import same_dim
from converters.compaction.rules.common import ints_attribute


@dataclass(frozen=True)
class Scale:
    """Numbers along one dimension, counted from the front; shape [width]."""

    dim: int
    factors: Constants


def behind_views(value: ir.Value, scale: Scale) -> tuple[ir.Value, Scale]:
    """The value behind the Transposes and merging Reshapes that are its only readers, and the factors there."""
    while not value.is_graph_output() and len(uses := list(value.uses())) == 1:
        node = uses[0].node
        if node.domain not in ("", "ai.onnx") or uses[0].idx != 0:
            break
        permutation = ints_attribute(node, "perm") if node.op_type == "Transpose" else None
        if permutation is not None:
            scale = Scale(permutation.index(scale.dim), scale.factors)
        elif node.op_type == "Reshape" and (merged := _merged(value, node.outputs[0], scale)) is not None:
            scale = merged
        else:
            break
        value = node.outputs[0]
    return value, scale


def _merged(before: ir.Value, after: ir.Value, scale: Scale) -> Scale | None:
    """Factors of a dimension that is merged with those behind it: [*, H, d] -> [*, H * d], each factor d times."""
    old, new = list(before.shape or ()), list(after.shape or ())
    dim = scale.dim
    if len(new) <= dim or not all(same_dim(a, b) for a, b in zip(old[:dim], new[:dim], strict=True)):
        return None
    width, rest = scale.factors.size, old[dim + 1 :]
    while rest and width != new[dim]:
        size = rest.pop(0)
        if not isinstance(size, int):
            return None
        width *= size
    if width != new[dim] or len(rest) != len(new) - dim - 1 or not all(map(same_dim, rest, new[dim + 1 :])):
        return None
    return Scale(dim, np.repeat(scale.factors, width // scale.factors.size))
