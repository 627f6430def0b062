"""Where does a bias map behind a layer pay, in place of input-independent channels in front of it?

The map adds one elementwise pass over the output; it saves the columns of the weight, the channels' own chain
(typically a depthwise convolution, a norm and an activation) and the convolution that made them. **Cost model**
(onnxruntime 1.31, one CPU core, float32; ratios only): a multiply-accumulate 0.02 ns, an element that is
written by a cheap operator 0.3 ns, an element that is copied 0.2 ns, an element of the added map 0.35 ns. A
channel of a chain is counted as three cheap operators, and on its way through Concat, Split and Gather it is
copied. The map must win by a quarter. Its stored size is small, because a map repeats itself away from the
border: equal rows and columns are stored once (see `Edit.add_map`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.axes import Axis, Facts, Mask, Permission, array_of, as_float64, is_constant, rank
from converters.compaction.map_convolution import convolve
from converters.compaction.maps import Maps
from converters.compaction.registry import FUNCTIONS
from converters.compaction.relations import Contract, Grouped, Relation

if TYPE_CHECKING:
    from converters.compaction.analysis import Analysis

_MAC_NS = 0.02
_CHAIN_NS = 3 * 0.3
_MAP_NS = 0.35
_COPY_NS = 0.2
_MARGIN = 1.25


def permit_maps(relations: Iterable[Relation], maps: Maps, facts: Facts) -> None:
    """Let every layer for which it pays lose the input-independent channels that it reads."""
    for relation in relations:
        if not isinstance(relation, Contract | Grouped) or relation.node is None or not _is_layer(relation, maps):
            continue
        fixed = _mapped(relation, maps, facts)
        if fixed is not None and _pays(relation.node, _saved_channels(relation, fixed, facts), maps):
            relation.mapped = fixed


def _is_layer(relation: Contract | Grouped, maps: Maps) -> bool:
    """A Conv of static size, or a MatMul by a constant whose channels come last."""
    node, data = relation.node, relation.data
    if node is None or data.dim != maps.channel(data.value) or _space(data.value, data.dim) is None:
        return False
    if node.op_type == "MatMul":
        weight = array_of(node.inputs[1])
        return node.inputs[0] is data.value and weight is not None and weight.ndim == 2
    return node.op_type == "Conv"


def _mapped(relation: Contract | Grouped, maps: Maps, facts: Facts) -> Mask | None:
    """Which channels a map would stand for, None if there is another way for all of them."""
    varying = maps.varying(relation.data.value)
    constant = facts.is_known(relation.data) & ~facts.is_zero(relation.data)
    if isinstance(relation, Grouped):
        takes_constants, needed = not relation.constants_fold, constant.any() and relation.groups < constant.size
    else:
        # where constants would need a representative, the map takes them too, but a representative is cheaper
        takes_constants, needed = relation.fold == "representative", False
    if varying is None and not (takes_constants and needed):
        return None
    fixed = np.zeros(constant.size, bool) if varying is None else varying
    return fixed | constant if takes_constants else fixed


def _saved_channels(relation: Contract | Grouped, fixed: Mask, facts: Facts) -> int:
    """How many channels go; groups keep as many as the one that keeps most."""
    if isinstance(relation, Contract):
        return int(fixed.sum())
    goes = (fixed | facts.is_zero(relation.data)).reshape(relation.groups, -1)
    return int(goes.sum(axis=1).min()) * relation.groups if goes.shape[1] > 1 else int(fixed.sum())


def folded_maps(analysis: Analysis, permission: Permission) -> dict[Relation, NDArray[np.generic]]:
    """What the removed input-independent channels add behind each layer, shape [O, *space] at full width.

    Evaluated while the graph is still as it was: the rewriting changes weights and groups.
    """
    found: dict[Relation, NDArray[np.generic]] = {}
    for relation in analysis.relations:
        if not isinstance(relation, Contract | Grouped) or relation.mapped is None or relation.node is None:
            continue
        index = relation.maps_to_fold(permission)
        weight = array_of(relation.node.inputs[1])
        if index.size == 0 or weight is None:
            continue
        data = analysis.maps.evaluate(relation.data.value)
        if relation.node.op_type == "MatMul":
            # weight: [C, O]
            found[relation] = np.tensordot(as_float64(weight[index]).T, data[index], axes=1).astype(weight.dtype)
            continue
        if isinstance(relation, Grouped):
            going = np.zeros(relation.data.size, bool)
            going[index] = True
            alone = np.where(going.reshape(-1, *[1] * (data.ndim - 1)), data, 0.0)
            added = convolve(relation.node, alone, as_float64(weight))
        else:
            added = convolve(relation.node, data[index], as_float64(weight[:, index]))
        found[relation] = added.astype(weight.dtype)  # at once, since all of them are held until they are written
    return found


def _pays(node: ir.Node, channels: int, maps: Maps) -> bool:
    x, weight, output = node.inputs[0], array_of(node.inputs[1]), node.outputs[0]
    if x is None or weight is None:
        return False
    if node.op_type == "MatMul":
        space = _space(x, maps.channel(x)) or 0
        saved = space * (weight.shape[1] * _MAC_NS + _CHAIN_NS) + _cost_to_make(x, maps)
        return bool(channels * saved > _MARGIN * weight.shape[1] * space * _MAP_NS)
    before, after = _space(x), _space(output)
    if before is None or after is None:
        return False
    # a removed channel of a group is read by that group's outputs alone
    readers = weight.shape[0] * weight.shape[1] / max(1, Axis(x, 1).size)
    saved = readers * math.prod(weight.shape[2:]) * after * _MAC_NS + before * _CHAIN_NS + _cost_to_make(x, maps)
    return bool(channels * saved > _MARGIN * weight.shape[0] * after * _MAP_NS)


def _cost_to_make(value: ir.Value, maps: Maps) -> float:
    """Nanoseconds for what makes one channel: a dense convolution, depthwise ones behind it, copies."""
    total = 0.0
    while routes := maps.routes(value):
        # most of its fixed channels come from one source
        value = max(routes, key=lambda route: int(maps.fixed(route.source)[route.origin].sum())).source
        total += (_space(value) or 0) * _COPY_NS
    node = value.producer()
    while node is not None and (
        node.op_type in ("Conv", "MatMul", "Reshape", "Transpose") or node.op_type in FUNCTIONS
    ):
        varying = [operand for operand in node.inputs if operand is not None and not is_constant(operand)]
        if node.op_type == "Conv":
            weight, space = array_of(node.inputs[1]), _space(node.outputs[0])
            if weight is None or space is None:
                return total
            total += math.prod(weight.shape[1:]) * space * _MAC_NS
            if weight.shape[1] > 1:
                return total
        if node.op_type == "MatMul":
            weight, space = array_of(node.inputs[1]), _space(node.outputs[0], (rank(node.outputs[0]) or 1) - 1)
            return total if weight is None or space is None else total + weight.shape[0] * space * _MAC_NS
        # x * sigmoid(x) comes from the same channel on both sides
        node = varying[0].producer() if varying else None
    return total


def _space(value: ir.Value, channel: int = 1) -> int | None:
    dims = [dim for position, dim in enumerate(value.shape or ()) if position not in (0, channel)]
    sizes = [dim for dim in dims if isinstance(dim, int)]
    return int(np.prod(sizes)) if dims and len(sizes) == len(dims) else None
