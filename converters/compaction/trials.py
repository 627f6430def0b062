"""Where does a Gather pay that frees two sides of an operator from each other, through the whole network?

Such a Gather lets indices go that stand far away from it, so what it saves is found by trying: from the state in which
all options are taken, each that is given up makes more indices stay, and the layers around them do that much more
work. What the Gather itself costs says `selection`. The options come from `spreading` and `sharing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from converters.compaction.analysis import Analysis
from converters.compaction.axes import Axis, Permission, array_of
from converters.compaction.padding import contraction_axes
from converters.compaction.relations import Grouped
from converters.compaction.selection import Selection, elements_of, gathers_pay
from converters.compaction.sharing import sharing_options
from converters.compaction.spreading import spreading_options


class Option(Protocol):
    """Gathers that are written together or not at all."""

    @property
    def source(self) -> Axis:
        """The axis that they take indices of."""

    def take(self, taken: bool) -> None:
        """Mark the relations, or take the mark back."""

    def gathers(self, permission: Permission) -> list[tuple[Axis, int]]:
        """The Gathers that this would need: along which axis, and of how many indices."""

    def selections(self) -> list[Selection]:
        """What the rewriting has to insert, apart from what a fixup does."""


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


def try_options(analysis: Analysis) -> tuple[Permission, list[Selection]]:
    """The solved permissions after every option that had better be taken is, and the Gathers to insert for them."""
    without = _solved(analysis)
    options: list[Option] = [*spreading_options(analysis), *sharing_options(analysis, without)]
    if not options:
        return without, []
    for option in options:
        option.take(True)
    solved, layers = _solved(analysis), _layers(analysis)
    around: dict[Axis, list[_Layer]] = {}
    for layer in layers:
        for axis in (layer.inputs, layer.outputs):
            if axis is not None:
                around.setdefault(axis, []).append(layer)
    gathers: list[tuple[Axis, int]] = []
    selections: list[Selection] = []
    for option in options:
        needed = option.gathers(solved)
        option.take(False)
        with solved.trial() as journal:
            solved.ask_again(option.source)
            changed = list(dict.fromkeys(layer for axis, _ in journal for layer in around.get(axis, ())))
            after = _work(changed, solved)
        before = _work(changed, solved)
        if gathers_pay(after[0] - before[0], after[1] - before[1], needed):
            option.take(True)
            gathers += needed
            selections += option.selections()
        else:
            solved.ask_again(option.source)
    # two that only pay together were each credited with all that both save
    before, after = _work(layers, solved), _work(layers, without)
    if gathers_pay(after[0] - before[0], after[1] - before[1], gathers):
        return solved, selections
    for option in options:
        option.take(False)
    return without, []


def _solved(analysis: Analysis) -> Permission:
    permission = Permission(analysis.relations)
    permission.solve()
    return permission


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
