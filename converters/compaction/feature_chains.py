"""Which constants carry the features of attention heads: the weights before the heads are split and after they merge?

    weights -> Add, Mul -> [*, heads * d] -> Reshape -> [*, heads, d] -> Transpose, Gather of heads -> product
    product -> Transpose, Mul per head -> [*, heads, d] -> Reshape -> [*, heads * d] -> Mul -> weights

The walks stop at everything else, so that between their ends a feature of a head meets nothing that knows its place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.axes import Axis, array_of, is_constant, rank, static_size
from converters.compaction.quantised_weights import RECIPE
from converters.compaction.relations import Product, Relation
from converters.compaction.rules.common import constant_ints, int_attribute, ints_attribute, operand


@dataclass(frozen=True)
class Merged:
    """Heads and features on the last axis of a value.

    Attributes:
        value: [*, width]; the features stand in the `heads * size` places from `offset` on.
    """

    value: ir.Value
    offset: int
    heads: int
    size: int


@dataclass(frozen=True)
class Heads:
    """An operand or a result of a product over heads, and where its features come from or go to.

    Attributes:
        axis: the heads' axis, counted from the end; index: for each head of the product one of `merged`.
    """

    merged: Merged
    axis: int
    index: NDArray[np.int64]


@dataclass
class Chain:
    """Initializers that carry the features of a merged value.

    Attributes:
        offset: the place of the first feature where the walk stands.
        operands: an initializer, the dimension of the features, and the place of the first of them there.
        shifted: whether one number is added to all features, which no operand can undo for some.
    """

    offset: int
    operands: list[tuple[ir.Value, int, int]] = field(default_factory=list)
    shifted: bool = False


def reader_of(value: ir.Value) -> ir.Node | None:
    """The only node that reads the value, None if there are more or it is an output of the model."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def is_standard(node: ir.Node, *operators: str) -> bool:
    """Whether the node is one of these standard operators."""
    return node.domain in ("", "ai.onnx") and node.op_type in operators


def heads_behind(value: ir.Value, feature: int, stated: dict[ir.Node, tuple[Relation, ...]]) -> Heads | None:
    """Walk back from an operand of a product to where its heads are split off; `feature` is its axis of features."""
    size = rank(value)
    if size is None:
        return None
    place = list(range(size))  # for each axis of the current value the operand's axis, or a negative label
    index: list[tuple[int, NDArray[np.int64]]] = []
    picked: dict[int, int] = {}
    while True:
        node = value.producer()
        if node is None or value.is_graph_output() or not (reader_of(value) or _only_picks(value)):
            return None
        at = place.index(feature)
        source = node.inputs[0] if node.inputs else None
        if source is None:
            return None
        if is_standard(node, "Transpose"):
            permutation = ints_attribute(node, "perm") or list(reversed(range(len(place))))
            turned = place.copy()
            for new, old in enumerate(permutation):
                turned[old] = place[new]
            place = turned
        elif is_standard(node, "Mul"):
            data = _scaled(node)
            if data is None or rank(data) != len(place):
                return None
            source = data
        elif is_standard(node, "Squeeze"):
            axes = constant_ints(node, 1)
            if axes is None:
                return None
            for axis in sorted(axis % (len(place) + len(axes)) for axis in axes):
                place.insert(axis, _label(place))
        elif is_standard(node, "Split") and int_attribute(node, "axis", 0) % len(place) != at:
            axis = int_attribute(node, "axis", 0) % len(place)
            lengths = [static_size(output, axis) for output in node.outputs]
            if any(length != 1 for length in lengths):
                return None
            picked[place[axis]] = list(node.outputs).index(value)
        elif is_standard(node, "Gather"):
            taken, axis = array_of(node.inputs[1]), int_attribute(node, "axis", 0) % (rank(source) or 1)
            if taken is None or taken.ndim > 1:
                return None
            if taken.ndim == 0:
                label = _label(place)
                place.insert(axis, label)
                picked[label] = int(taken)
            elif axis == at:
                return None
            else:
                index.append((place[axis], np.asarray(taken, np.int64)))
        elif is_standard(node, "Reshape"):
            return _split_off(node, source, place, at, index, picked, stated)
        else:
            return None
        value = source


def _label(place: list[int]) -> int:
    return min(0, *place) - 1


def _only_picks(value: ir.Value) -> bool:
    """Whether all readers take single entries of one axis, each another one."""
    uses = list(value.uses())
    if not uses or any(not is_standard(use.node, "Gather") or use.idx != 0 for use in uses):
        return False
    axes = {int_attribute(use.node, "axis", 0) for use in uses}
    taken = [array_of(use.node.inputs[1]) for use in uses]
    numbers = [int(array) for array in taken if array is not None and array.ndim == 0]
    return len(axes) == 1 and len(numbers) == len(set(numbers)) == len(uses)


def _scaled(node: ir.Node) -> ir.Value | None:
    """What a Mul multiplies by one number."""
    for slot in (0, 1):
        array = array_of(node.inputs[slot])
        if array is not None and array.size == 1:
            return node.inputs[1 - slot]
    return None


def _split_off(
    node: ir.Node,
    source: ir.Value,
    place: list[int],
    at: int,
    index: list[tuple[int, NDArray[np.int64]]],
    picked: dict[int, int],
    stated: dict[ir.Node, tuple[Relation, ...]],
) -> Heads | None:
    output = node.outputs[0]
    last = Axis(source, (rank(source) or 0) - 1)
    for relation in stated.get(node, ()):
        if not isinstance(relation, Product) or relation.sources != (last,) or at < 1:
            continue
        dims = [axis.dim for axis in relation.outputs]
        if dims not in ([at - 1, at], [at - 2, at - 1, at]):
            continue
        heads, size = Axis(output, at - 1).size, Axis(output, at).size
        head, outer = place[at - 1], place[at - 2] if len(dims) == 3 else None
        if (
            head < 0
            or any(axis != head for axis, _ in index)
            or set(picked) != ({outer} if outer is not None else set())
        ):
            return None
        chosen = np.arange(heads)
        for _, taken in reversed(index):
            chosen = chosen[taken % chosen.size]
        offset = 0 if outer is None else picked[outer] % Axis(output, at - 2).size * heads * size
        operand_rank = sum(label >= 0 for label in place)
        return Heads(Merged(source, offset, heads, size), operand_rank - head, chosen)
    return None


def heads_before(value: ir.Value, stated: dict[ir.Node, tuple[Relation, ...]]) -> Heads | None:
    """Walk from the result of a product, features on its last axis, to where its heads are merged."""
    size = rank(value)
    if size is None:
        return None
    place = list(range(size))
    while True:
        node = reader_of(value)
        if node is None:
            return None
        at = place.index(size - 1)
        output = node.outputs[0]
        if is_standard(node, "Transpose"):
            permutation = ints_attribute(node, "perm") or list(reversed(range(size)))
            place = [place[old] for old in permutation]
        elif is_standard(node, "Mul"):
            constants = [array_of(v) for v in node.inputs if is_constant(v)]
            if len(constants) != 1 or constants[0] is None or rank(output) != size:
                return None
            from_end = size - at
            if constants[0].ndim >= from_end and constants[0].shape[-from_end] != 1:
                return None
        elif is_standard(node, "Reshape") and node.inputs[0] is value:
            merged = Axis(output, (rank(output) or 0) - 1)
            for relation in stated.get(node, ()):
                if isinstance(relation, Product) and relation.outputs == (merged,) and at >= 1:
                    if [axis.dim for axis in relation.sources] != [at - 1, at]:
                        return None
                    heads, width = (axis.size for axis in relation.sources)
                    return Heads(Merged(output, 0, heads, width), size - place[at - 1], np.arange(heads))
            return None
        else:
            return None
        value = output


def chain_behind(merged: Merged) -> Chain | None:
    """The constants that make a merged value, back to the matrix; linear operators only."""
    value, chain = merged.value, Chain(merged.offset)
    if reader_of(value) is None:
        return None
    while True:
        node, width = value.producer(), _width(value)
        if node is None or width is None:
            return None
        if is_standard(node, "Add", "Mul"):
            data = _elementwise(node, chain, width)
            if data is None:
                return None
            value = data
        elif is_standard(node, "Reshape"):
            source = node.inputs[0]
            if source is None or _width(source) != width:
                return None
            value = source
        elif is_standard(node, "Split"):
            source = node.inputs[0]
            size = None if source is None else rank(source)
            if source is None or size is None or int_attribute(node, "axis", 0) % size != size - 1:
                return None
            before = [_width(output) for output in node.outputs[: list(node.outputs).index(value)]]
            chain.offset += sum(length for length in before if length is not None)
            value = source
        elif is_standard(node, "MatMul", "Gemm"):
            return chain if _matrix(node, chain, width, rows=False) and _are_own(chain.operands) else None
        else:
            return None
        if reader_of(value) is None:
            return None


def chain_before(merged: Merged) -> Chain | None:
    """The constants that read a merged value, up to the matrix; products only, so that a zero stays one."""
    value, chain = merged.value, Chain(merged.offset)
    while True:
        node, width = reader_of(value), _width(value)
        if node is None or width is None:
            return None
        if is_standard(node, "Mul"):
            if _elementwise(node, chain, width) is not value:
                return None
        elif is_standard(node, "Reshape"):
            if node.inputs[0] is not value or _width(node.outputs[0]) != width:
                return None
        elif is_standard(node, "MatMul", "Gemm") and node.inputs[0] is value:
            return chain if _matrix(node, chain, width, rows=True) and _are_own(chain.operands) else None
        else:
            return None
        value = node.outputs[0]


def _width(value: ir.Value) -> int | None:
    size = rank(value)
    return None if not size else static_size(value, size - 1)


def _elementwise(node: ir.Node, chain: Chain, width: int) -> ir.Value | None:
    """The operand that is no constant; the constant joins the chain where it has one number per feature."""
    slots = [slot for slot in (0, 1) if is_constant(node.inputs[slot])]
    if len(slots) != 1:
        return None
    constant, data = node.inputs[slots[0]], node.inputs[1 - slots[0]]
    if constant is None or data is None or _width(data) != width or rank(data) != rank(node.outputs[0]):
        return None
    wide = bool(rank(constant)) and _width(constant) == width
    if not wide and rank(constant) and _width(constant) != 1:
        return None
    if wide:
        chain.operands.append((constant, (rank(constant) or 0) - 1, chain.offset))
    chain.shifted |= node.op_type == "Add" and not wide
    return data


def _matrix(node: ir.Node, chain: Chain, width: int, *, rows: bool) -> bool:
    """Enter the weight of a product, and the addend of a Gemm that makes the features."""
    weight = node.inputs[1]
    if weight is None or not is_constant(weight) or rank(weight) != 2:
        return False
    turned = node.op_type == "Gemm" and int_attribute(node, "transB", 0) == 1
    if node.op_type == "Gemm" and int_attribute(node, "transA", 0):
        return False
    addend = operand(node, 2) if node.op_type == "Gemm" and not rows else None
    if addend is not None:
        if not is_constant(addend) or not rank(addend) or _width(addend) != width:
            return False
        chain.operands.append((addend, (rank(addend) or 0) - 1, chain.offset))
    dim = int(rows == turned)
    chain.operands.append((weight, dim, chain.offset))
    return static_size(weight, dim) == width


def _are_own(operands: Iterable[tuple[ir.Value, int, int]]) -> bool:
    """Whether nobody else reads these initializers, and each is stored as the numbers that it stands for."""
    return all(
        len(value.uses()) == 1 and not value.is_graph_output() and RECIPE not in value.meta for value, _, _ in operands
    )
