"""Where does a bias map behind a convolution pay, in place of input-independent channels in front of it?

The map adds one elementwise pass over the output; it saves the columns of the weight, the channels' own chain
(typically a depthwise convolution, a norm and an activation) and everything that made them. **Cost model**
(onnxruntime 1.31, one CPU core, float32; ratios only): a multiply-accumulate 0.02 ns, an element that is
written by a cheap operator 0.3 ns, an element of the added map 0.35 ns. A channel of a chain is counted as
three cheap operators. The map must win by a quarter. Its stored size is small, because a map repeats itself
away from the border: equal rows and columns are stored once (see `Edit.add_map`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from converters.compaction.axes import Facts, Permission, array_of, as_float64
from converters.compaction.maps import Map, Maps, convolve
from converters.compaction.relations import Contract, Relation

if TYPE_CHECKING:
    from converters.compaction.analysis import Analysis

_MAC_NS = 0.02
_CHAIN_NS = 3 * 0.3
_MAP_NS = 0.35
_MARGIN = 1.25


def permit_maps(relations: Iterable[Relation], maps: Maps, facts: Facts) -> None:
    """Let every convolution for which it pays lose the input-independent channels that it reads."""
    for relation in relations:
        if not isinstance(relation, Contract) or relation.node is None or relation.node.op_type != "Conv":
            continue
        varying = maps.varying(relation.data.value)
        if varying is None or not _pays(relation.node, int(varying.sum())):
            continue
        constant = maps.fixed(relation.data.value) & ~facts.is_zero(relation.data)
        # where constants would need a representative, the map takes them too
        relation.mapped = varying | constant if relation.fold == "representative" else varying


def folded_maps(analysis: Analysis, permission: Permission) -> dict[Contract, Map]:
    """What the removed input-independent channels add behind each convolution, shape [O, *space] at full width.

    Evaluated while the graph is still as it was: the rewriting changes weights and groups.
    """
    found: dict[Contract, Map] = {}
    for relation in analysis.relations:
        if not isinstance(relation, Contract) or relation.mapped is None or relation.node is None:
            continue
        index = relation.maps_to_fold(permission)
        weight = array_of(relation.node.inputs[1])
        if index.size and weight is not None:
            data = analysis.maps.evaluate(relation.data.value)[index]
            found[relation] = convolve(relation.node, data, as_float64(weight[:, index]))
    return found


def _pays(node: ir.Node, channels: int) -> bool:
    x, weight, output = node.inputs[0], array_of(node.inputs[1]), node.outputs[0]
    if x is None or weight is None:
        return False
    before, after = _space(x), _space(output)
    if before is None or after is None:
        return False
    taps = math.prod(weight.shape[2:])
    saved = channels * (weight.shape[0] * taps * after * _MAC_NS + before * _CHAIN_NS)
    return bool(saved > _MARGIN * weight.shape[0] * after * _MAP_NS)


def _space(value: ir.Value) -> int | None:
    dims = list(value.shape)[2:] if value.shape is not None else []
    sizes = [dim for dim in dims if isinstance(dim, int)]
    return int(np.prod(sizes)) if dims and len(sizes) == len(dims) else None
