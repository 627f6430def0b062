"""Where does a Gather in front of a weighted sum pay, because the sum needs few indices of an axis that stays?

An axis that cannot be cut (an input of the model, or one that other readers need) may be read by a Conv, Gemm
or MatMul that uses only some of its indices. A constant Gather that takes just those, in front of a narrower
weight, is exact. It costs a node that copies and saves weights and multiply-accumulates.

**Cost model** (onnxruntime 1.31 on one CPU core, float32, measured on MatMul 784x219, 800x462, 512x512,
64x64, 4096x4096 at batch 1 to 256 and on 1x1 and 3x3 Conv at 7x7 to 56x56; only their ratios matter):

| what | cost |
|---|---|
| a Gather node | 1.5 us per run |
| one copied block (the elements behind one index) | 8 ns |
| one copied element | 0.2 ns |
| one multiply-accumulate | 0.02 ns |
| one weight that is read once per run | 0.05 ns |

The Gather must pay at batch 1, where weights are read once, and in the limit of large batches, where only
multiply-accumulates count; by a quarter in both, as the model is no better than that. Examples: 784 inputs of
which 219 are used, 219 outputs: 14 us to 10 us at batch 1, 1.64 ms to 0.64 ms at batch 256. Of 784, 600 used:
refused (it would take 0.22 ms instead of 0.11 ms at batch 32). Unknown dimensions count as 1 in the batch,
and unknown heights and widths as 14.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.analysis import Analysis
from converters.compaction.axes import Axis, Mask, Permission, array_of, is_constant
from converters.compaction.relations import Contract, Relation, Tie

_NODE_NS = 1500.0
_BLOCK_NS = 8.0
_ELEMENT_NS = 0.2
_MAC_NS = 0.02
_WEIGHT_NS = 0.05
_MARGIN = 1.25
_UNKNOWN_SPACE = 14

# a Gather may move above these, which work index by index on one operand, so that they get narrower too
_POINTWISE = frozenset(
    {
        *("Abs", "Add", "BatchNormalization", "Celu", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid"),
        *("HardSwish", "LeakyRelu", "Mish", "Mul", "Neg", "PRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign"),
        *("Sqrt", "Sub", "Swish", "Tanh"),
    }
)


@dataclass(frozen=True)
class Selection:
    """A Gather along `source` in front of `relation.node`, which then works on fewer indices.

    Attributes:
        slot: the node's operand that the Gather narrows.
        taken: the axis behind the Gather that says which indices are used.
    """

    relation: Relation
    slot: int
    source: Axis
    taken: Axis


@dataclass(frozen=True)
class _Candidate:
    top: Relation
    source: Axis
    taken: Axis
    wanted: Mask
    saved_macs: float  # per example
    saved_weights: int


def select_inputs(analysis: Analysis, permission: Permission) -> list[Selection]:
    """Mark every relation in front of which a Gather pays; the permissions must then be solved anew.

    Readers that need the same indices of the same axis share one Gather, and their savings count together.
    """
    readers: dict[Axis, int] = {}
    for relation in analysis.relations:
        for axis in relation.axes:
            readers[axis] = readers.get(axis, 0) + 1
    shared: dict[tuple[Axis, bytes], list[_Candidate]] = {}
    for relation in analysis.relations:
        if isinstance(relation, Contract):
            candidate = _candidate(analysis, permission, relation, readers)
            if candidate is not None:
                shared.setdefault((candidate.source, candidate.wanted.tobytes()), []).append(candidate)
    chosen: list[Selection] = []
    for (source, _), candidates in shared.items():
        if not _pays(source, candidates):
            continue
        for candidate in candidates:
            candidate.top.selected = source
            assert candidate.top.node is not None
            slot = candidate.top.node.inputs.index(source.value)
            chosen.append(Selection(candidate.top, slot, source, candidate.taken))
    return chosen


def _candidate(
    analysis: Analysis, permission: Permission, relation: Contract, readers: dict[Axis, int]
) -> _Candidate | None:
    node, weight = relation.node, relation.weight
    if node is None or weight is None or node.op_type not in ("Conv", "Gemm", "MatMul") or readers[weight] != 1:
        return None
    array = array_of(weight.value)
    if array is None or is_constant(relation.data.value):
        return None
    kept = ~permission.removable(relation.data)
    wanted = ~relation.permitted
    if relation.fold == "representative" and relation.constants_to_fold(analysis.facts, permission).size:
        return None
    if relation.fold == "representative":
        constant = analysis.facts.is_known(relation.data) & relation.read & ~analysis.facts.is_zero(relation.data)
        wanted = wanted | constant  # they would need a representative behind the Gather: leave them in
    saved = int(kept.sum()) - int(wanted.sum())
    if saved <= 0 or not wanted.any():
        return None
    top: Relation = relation
    source, taken = relation.data, weight
    while (above := _pointwise_source(analysis, source)) is not None:
        top, taken, source = above[0], source, above[1]
    weights = array.size // weight.size
    positions = elements_of(node.outputs[0]) / max(1, _outputs(node, array))
    return _Candidate(top, source, taken, wanted, saved * weights * positions, saved * weights)


def _outputs(node: ir.Node, weight: NDArray[np.generic]) -> int:
    transposed = node.attributes.get("transB")
    rows_first = node.op_type == "Conv" or (transposed is not None and transposed.as_int() == 1)
    return int(weight.shape[0 if rows_first else -1])


def _pointwise_source(analysis: Analysis, axis: Axis) -> tuple[Relation, Axis] | None:
    """The operator that makes the value, if it works index by index on one operand and has no other reader."""
    value = axis.value
    node = value.producer()
    if node is None or value.is_graph_output() or len(value.uses()) != 1 or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type not in _POINTWISE:
        return None
    varying = [operand for operand in node.inputs if operand is not None and not is_constant(operand)]
    if len(varying) != 1:
        return None
    source = varying[0]
    for relation in analysis.of_node[node]:
        if isinstance(relation, Tie) and axis in relation.outputs:
            inputs = [other for other in relation.inputs if other.value is source]
            return (relation, inputs[0]) if len(inputs) == 1 else None
    return None


def _pays(source: Axis, candidates: list[_Candidate]) -> bool:
    macs = sum(candidate.saved_macs for candidate in candidates)
    weights = sum(candidate.saved_weights for candidate in candidates)
    return gathers_pay(macs, weights, [(source, int(candidates[0].wanted.sum()))])


def gathers_pay(macs: float, weights: float, gathers: Sequence[tuple[Axis, int]]) -> bool:
    """Whether what is saved is worth these Gathers: along which axis, and how many indices each takes.

    Args:
        macs: multiply-accumulates saved per example; weights: weights that are read no more.
    """
    copied = 0.0
    for source, taken in gathers:
        elements = elements_of(source.value) / source.size * taken
        copied += elements * _ELEMENT_NS + elements / elements_of(source.value, source.dim + 1) * _BLOCK_NS
    at_batch_1 = macs * _MAC_NS + weights * _WEIGHT_NS > _MARGIN * (_NODE_NS * len(gathers) + copied)
    at_large_batch = macs * _MAC_NS > _MARGIN * copied
    return at_batch_1 and at_large_batch


def elements_of(value: ir.Value, start: int = 0) -> float:
    """Number of elements of one example in the dimensions from `start` on."""
    assert value.shape is not None
    total = 1.0
    for dim in range(start, len(value.shape)):
        size = value.shape[dim]
        total *= size if isinstance(size, int) else (1 if dim == 0 else _UNKNOWN_SPACE)
    return total
