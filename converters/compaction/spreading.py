"""Where does it pay that a grouped convolution with one input per group becomes a depthwise one behind a Gather?

Such a convolution makes k outputs of every input. As one operator it ties both sides: an input stays as long as one of
its outputs does, and all inputs keep equally many outputs. Between two streams of channels that are gated each for
itself it holds up both, through the whole network. Spread, every output that stays is a group of its own and reads
its input through a constant Gather: output j takes input floor(j / k), and each side follows its own readers.

The Gather costs what `selection` says. What it saves is found by trying: from the state in which all candidates are
spread, each that is put together again makes more indices stay, and the layers around them do that much more work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from converters.compaction.analysis import Analysis
from converters.compaction.axes import Axis, Permission, array_of
from converters.compaction.padding import contraction_axes
from converters.compaction.relations import Grouped
from converters.compaction.selection import elements_of, gathers_pay


@dataclass(frozen=True, eq=False)
class _Layer:
    """A contraction with constant weights.

    Attributes:
        grouped: its relation if it is a grouped convolution, which sums over the inputs of one group only.
        macs, weights: of one input and one output, per example.
    """

    inputs: Axis | None
    outputs: Axis | None
    grouped: Grouped | None
    macs: float
    weights: float


def spread_groups(analysis: Analysis) -> Permission:
    """The solved permissions, after every grouped convolution that had better be spread is marked so."""
    together = _solved(analysis)
    candidates: dict[Axis, list[Grouped]] = {}
    for relation in analysis.relations:
        if isinstance(relation, Grouped) and relation.can_spread:
            candidates.setdefault(relation.data, []).append(relation)  # they may share a Gather
    if not candidates:
        return together
    for relations in candidates.values():
        _mark(relations, True)
    spread, layers = _solved(analysis), _layers(analysis)
    around: dict[Axis, list[_Layer]] = {}
    for layer in layers:
        for axis in (layer.inputs, layer.outputs):
            if axis is not None:
                around.setdefault(axis, []).append(layer)
    gathers: list[tuple[Axis, int]] = []
    for source, relations in candidates.items():
        needed = _gathers(relations, spread)
        _mark(relations, False)
        with spread.trial() as journal:
            spread.ask_again(source)
            changed = list(dict.fromkeys(layer for axis, _ in journal for layer in around.get(axis, ())))
            after = _work(changed, spread)
        before = _work(changed, spread)
        _mark(relations, pays := gathers_pay(after[0] - before[0], after[1] - before[1], needed))
        if pays:
            gathers += needed
        else:
            spread.ask_again(source)
    # two that only pay together were each credited with all that both save
    before, after = _work(layers, spread), _work(layers, together)
    if gathers_pay(after[0] - before[0], after[1] - before[1], gathers):
        return spread
    for relations in candidates.values():
        _mark(relations, False)
    return together


def _solved(analysis: Analysis) -> Permission:
    permission = Permission(analysis.relations)
    permission.solve()
    return permission


def _mark(relations: Sequence[Grouped], spread: bool) -> None:
    for relation in relations:
        relation.spread = spread


def _gathers(relations: Sequence[Grouped], permission: Permission) -> list[tuple[Axis, int]]:
    """Along which axis and of how many indices; convolutions that read the same share one."""
    needed: dict[bytes, tuple[Axis, int]] = {}
    for relation in relations:
        staying = np.flatnonzero(~permission.removable(relation.data))
        if staying.size and not permission.removable(relation.output).all():
            taken = relation.taken(permission)
            if not np.array_equal(taken, staying):
                needed[taken.tobytes()] = relation.data, taken.size
    return list(needed.values())


def _layers(analysis: Analysis) -> list[_Layer]:
    found = []
    for node, stated in analysis.of_node.items():
        axes = contraction_axes(node)
        if axes is None:
            continue
        x, weight = node.inputs[0], array_of(node.inputs[1])
        assert x is not None
        assert weight is not None
        grouped = next((relation for relation in stated if isinstance(relation, Grouped)), None)
        groups = 1 if grouped is None else grouped.groups
        size_in, size_out = (1 if axis is None else axis.size for axis in axes)
        weights = weight.size / (size_in // groups * size_out)
        # every position of the input of a transposed convolution meets every weight, elsewhere of the output
        space, width = (x, size_in) if node.op_type == "ConvTranspose" else (node.outputs[0], size_out)
        found.append(_Layer(*axes, grouped, weights * elements_of(space) / width, weights))
    return found


def _work(layers: Sequence[_Layer], permission: Permission) -> tuple[float, float]:
    """Multiply-accumulates per example and weights of all layers."""
    macs = weights = 0.0
    for layer in layers:
        pairs = float(_count(permission, layer.outputs) * _count(permission, layer.inputs))
        if layer.grouped is not None:
            pairs = _count(permission, layer.outputs) * layer.grouped.inputs_each(permission)
        macs, weights = macs + pairs * layer.macs, weights + pairs * layer.weights
    return macs, weights


def _count(permission: Permission, axis: Axis | None) -> int:
    return 1 if axis is None else int((~permission.removable(axis)).sum())
