"""Which hidden units of an LSTM, GRU or RNN may go, and what goes with them?

Unit i owns row i of every gate in W, R, B and P, column i of R, entry i of the first states, and index i of
every output. It may go

- when no output needs it and no unit that is needed reads it through R (units that only read each other go
  together), or
- when its state is zero at every step: it starts at zero, and the gate that proposes new values (c of an
  LSTM, h of a GRU, the only one of an RNN) sees an exact zero at every step, because its weights are zero
  wherever its inputs are not. Then c = f * 0 + i * tanh(0) = 0, respectively h = (1 - z) * tanh(0) + z * 0 = 0.

Both directions of a bidirectional operator have the same number of units, so a unit goes from both or stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.axes import Axis, Constants, Facts, Liveness, Mask, Permission, array_of, as_float64
from converters.compaction.relations import Relation
from converters.compaction.rules.common import axis_of, int_attribute, operand, string_attribute

# f(0) = 0, whatever alpha and beta are
_ZERO_AT_ZERO = frozenset({"tanh", "relu", "leakyrelu", "thresholdedrelu", "elu", "scaledtanh", "softsign"})
# A unit that stays although nobody needs it may hold anything. With these it stays finite all the same, so that
# the zeros in R silence it.
_BOUNDED = frozenset({"sigmoid", "tanh", "hardsigmoid", "scaledtanh", "softsign"})


@dataclass(frozen=True)
class Recurrence:
    """What distinguishes the three operators.

    Attributes:
        gates: rows of W per unit.
        proposal: which of them proposes new values; the others only weigh.
        activations: names per direction, when none are given.
        at_zero: which of the activations must be 0 at 0 for a state of zeros to stay zero.
    """

    gates: int
    proposal: int
    activations: tuple[str, ...]
    at_zero: tuple[int, ...]


RECURRENCES = {
    "LSTM": Recurrence(4, 3, ("Sigmoid", "Tanh", "Tanh"), (1, 2)),
    "GRU": Recurrence(3, 2, ("Sigmoid", "Tanh"), (1,)),
    "RNN": Recurrence(1, 0, ("Tanh",), (0,)),
}


class Units(Relation):
    """Axes whose index k belongs to unit k modulo the number of units; a unit goes from all of them or from none.

    Args:
        outputs: axes of Y, Y_h and Y_c.
        states: axes of initial_h and initial_c.
        stacked: axes of W, R, B and P that hold the gates one after another.
        columns: the axis of R that the state is contracted with.
        features: the input's axis, None if it has length 1.
    """

    def __init__(
        self,
        node: ir.Node,
        outputs: list[Axis],
        states: list[Axis],
        stacked: list[Axis],
        columns: Axis,
        features: Axis | None,
    ) -> None:
        super().__init__(node, [*outputs, *states, *stacked, columns])
        self.outputs, self.inputs, self._features = outputs, [*states, *stacked, columns], features
        self.columns, self.count = columns, columns.size
        self.zero: Mask = np.zeros(self.count, bool)
        self.needed: Mask = np.ones(self.count, bool)

    @property
    def reason(self) -> str:
        return "a unit of the recurrence goes as a whole: its state is not always zero, and a unit that stays reads it"

    def forward(self, facts: Facts) -> None:
        self.zero = self._stays_zero(facts)
        for axis in self.outputs:
            facts.learn(axis, np.where(self.zero, 0.0, np.nan))

    def require(self, live: Liveness, facts: Facts) -> None:
        needed = np.zeros(self.count, bool)
        for axis in self.outputs:
            needed |= live.needed(axis)
        assert self.node is not None
        if not all(name.lower() in _BOUNDED for name in _activations(self.node)):
            needed[:] = True
        reads = self._reads()
        while (more := reads[needed].any(axis=0) & ~needed).any():
            needed |= more
        self.needed = needed
        for axis in self.inputs:
            live.need(axis, np.tile(needed, axis.size // self.count))

    def shrink(self, permission: Permission) -> None:
        stays = self.needed & ~self.zero
        for axis in self.axes:
            stays = stays | (~permission.removable(axis)).reshape(-1, self.count).any(axis=0)
        for axis in self.axes:
            permission.withhold(axis, np.tile(stays, axis.size // self.count))

    def _reads(self) -> Mask:
        """Whether some gate of unit i reads unit j, shape [unit i, unit j]."""
        recurrent = array_of(self.columns.value)
        assert recurrent is not None
        by_gate = (recurrent != 0).reshape(-1, self.count, self.count)
        reads: Mask = np.logical_or.reduce(by_gate, axis=0)
        return reads

    def _stays_zero(self, facts: Facts) -> Mask:
        """Units whose state is zero at every step, in every direction; shape [count]."""
        node = self.node
        assert node is not None
        kind = RECURRENCES[node.op_type]
        weight, recurrent = array_of(node.inputs[1]), array_of(node.inputs[2])
        assert weight is not None
        assert recurrent is not None
        zero = np.zeros(self.count, bool)
        if not _keeps_zero(node) or not self._starts_at_zero(facts).any():
            return zero
        shape = (weight.shape[0], kind.gates, self.count)
        silent = self._starts_at_zero(facts)
        features = None if self._features is None else facts.constants(self._features)
        bias = _biases(node, shape)
        if bias is None:
            return zero
        added = _constant_input(weight.reshape(*shape, -1)[:, kind.proposal], features)  # [D, unit]
        if node.op_type == "GRU" and int_attribute(node, "linear_before_reset", 0):
            quiet = (added + bias[0, :, kind.proposal] == 0) & (bias[1, :, kind.proposal] == 0)
        else:
            quiet = added + bias[0, :, kind.proposal] + bias[1, :, kind.proposal] == 0
        silent &= quiet.all(axis=0)
        reads = (recurrent.reshape(*shape, -1)[:, kind.proposal] != 0).any(axis=0)  # [unit, unit]
        # the proposal of a silent unit reads silent units at most: drop those that read others until none is left
        while (loud := silent & reads[:, ~silent].any(axis=1)).any():
            silent &= ~loud
        return silent

    def _starts_at_zero(self, facts: Facts) -> Mask:
        assert self.node is not None
        zero = np.ones(self.count, bool)
        for slot in (5, 6):
            state = operand(self.node, slot)
            if state is not None:
                axis = axis_of(state, -1)
                zero &= False if axis is None else facts.is_zero(axis)
        return zero


def relate_units(node: ir.Node, features: Axis | None) -> Units | None:
    """The relation of the node's units, None where something about them is not known."""
    kind = RECURRENCES[node.op_type]
    columns = axis_of(node.inputs[2], 2)
    recurrent, weight = array_of(node.inputs[2]), array_of(node.inputs[1])
    if columns is None or recurrent is None or weight is None:
        return None
    count = columns.size
    stacked: list[Axis] = []
    for slot, blocks in ((1, kind.gates), (2, kind.gates), (3, 2 * kind.gates), (7, 3)):
        value = operand(node, slot)
        if value is None:
            continue
        axis = axis_of(value, 1)
        if axis is None or axis.size != blocks * count:
            return None
        stacked.append(axis)
    states = [axis_of(value, -1) for slot in (5, 6) if (value := operand(node, slot)) is not None]
    # an output that nobody reads may have no shape, but one that has a shape must stay in step
    described = [v for v in node.outputs if v.uses() or v.is_graph_output() or v.shape is not None]
    outputs = [axis_of(output, -1) for output in described]
    known = [axis for axis in (*states, *outputs) if axis is not None and axis.size == count]
    if len(known) != len(states) + len(outputs):
        return None
    return Units(node, known[len(states) :], known[: len(states)], stacked, columns, features)


def _activations(node: ir.Node) -> list[str]:
    """Names of the activations, one direction after the other."""
    attribute = node.attributes.get("activations")
    directions = 2 if string_attribute(node, "direction", "forward") == "bidirectional" else 1
    return (
        list(RECURRENCES[node.op_type].activations) * directions if attribute is None else list(attribute.as_strings())
    )


def _keeps_zero(node: ir.Node) -> bool:
    kind, names = RECURRENCES[node.op_type], _activations(node)
    each = len(kind.activations)
    return all(names[start + k].lower() in _ZERO_AT_ZERO for start in range(0, len(names), each) for k in kind.at_zero)


def _biases(node: ir.Node, shape: tuple[int, int, int]) -> NDArray[np.float64] | None:
    """Wb and Rb, shape [2, directions, gates, units]; None if they are computed at run time."""
    value = operand(node, 3)
    array = array_of(value)
    if value is None:
        return np.zeros((2, *shape))
    directions, gates, count = shape
    return None if array is None else as_float64(array).reshape(directions, 2, gates, count).swapaxes(0, 1)


def _constant_input(rows: NDArray[np.generic], features: Constants | None) -> Constants:
    """What the input adds to each row, NaN where that varies; rows: [D, unit, I] -> [D, unit]."""
    known = np.zeros(rows.shape[-1]) if features is None else np.nan_to_num(features)
    unknown = np.ones(rows.shape[-1], bool) if features is None else np.isnan(features)
    varies = (rows[..., unknown] != 0).any(axis=-1)
    return np.where(varies, np.nan, as_float64(rows) @ known)
