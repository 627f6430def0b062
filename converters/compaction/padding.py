"""Which dead indices stay all the same, so that a layer gets a width that the hardware likes?

To keep a removable index is always exact: permissions only ever withhold, and what a kept dead index holds is what
it held in the gated model (a zero, a constant) or is multiplied by zeros wherever it is read. So survivors are
padded with the model's own dead channels, up to the width it had.

Which widths are good is not the engine's business: a `Widths` is asked, with every layer and with the groups of
axes that are cut together (`Coupling`), found by trying: keep one index more, and see what else must stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from converters.compaction.analysis import Analysis
from converters.compaction.axes import PADDING, Axis, Mask, Permission, array_of, axes_of
from converters.compaction.relations import Contract, Grouped
from converters.compaction.vanishing import Vanishing

# removable indices of one axis may drag different things along (an index in a dead head, one in a living head)
_INDICES_TRIED = 4


@dataclass(frozen=True)
class Layer:
    """A contraction with constant weights, and how wide it would be without padding.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        inputs: the axis that is summed over; None where it has length 1. A convolution that is spread
            (`spreading`) has one input for each of its outputs, so it is their axis.
        outputs: the axis of results; None where it has length 1.
        kept_inputs, kept_outputs: survivors on them.
        groups: groups that stay, of a grouped convolution; 1 for any other layer.
    """

    node: ir.Node
    inputs: Axis | None
    outputs: Axis | None
    kept_inputs: int
    kept_outputs: int
    groups: int = 1

    @property
    def is_depthwise(self) -> bool:
        """Whether every input channel is a group of its own."""
        group = self.node.attributes.get("group")
        if group is None or group.as_int() == 1 or self.inputs is None:
            return False
        # a spread convolution has its own outputs as inputs, one each
        return group.as_int() == self.inputs.size or self.inputs == self.outputs


@dataclass(frozen=True)
class Coupling:
    """Axes that are cut together.

    Attributes:
        axis: the one that speaks for them.
        kept: its survivors.
        full: its width in the gated model.
        step: survivors that it gains at once (more than 1 where groups or heads must stay equal).
        gains: what each axis gains with every step.
    """

    axis: Axis
    kept: int
    full: int
    step: int
    gains: Mapping[Axis, int]


# how many survivors each coupling should have: between `kept` and `full`, reached in whole steps
Widths = Callable[[Sequence[Layer], Sequence[Coupling]], Sequence[int]]


def keep_widths(analysis: Analysis, permission: Permission, widths: Widths) -> bool:
    """Withhold dead indices until every coupling is as wide as `widths` wants it, as far as there are any.

    Returns:
        Whether anything was withheld; representatives must then be chosen anew.
    """
    vanishing = Vanishing(analysis, permission)
    layers = _find_layers(analysis, permission, vanishing)
    couplings = _find_couplings(analysis, permission, layers)
    padded = False
    for coupling, wanted in zip(couplings, widths(layers, couplings), strict=True):
        padded |= _pad(analysis, permission, coupling, wanted)
    return padded


def _find_layers(analysis: Analysis, permission: Permission, vanishing: Vanishing) -> list[Layer]:
    layers = []
    for node, stated in analysis.of_node.items():
        found = None if vanishing.node_goes(node) else contraction_axes(node)
        if found is None:
            continue
        inputs, outputs = found
        if any(isinstance(relation, Grouped) and relation.spread for relation in stated):
            inputs = outputs  # what it reads is the Gather in front of it
        taken = [relation.taken for relation in stated if isinstance(relation, Contract) and relation.data == inputs]
        layers.append(
            Layer(
                node,
                inputs,
                outputs,
                _count(permission, taken[0] if taken else inputs),
                _count(permission, outputs),
                max((_groups(permission, relation) for relation in stated if isinstance(relation, Grouped)), default=1),
            )
        )
    return layers


def _groups(permission: Permission, relation: Grouped) -> int:
    stays = ~permission.removable(relation.output)
    return int(stays.sum() if relation.spread else stays.reshape(relation.groups, -1).any(axis=1).sum())


def contraction_axes(node: ir.Node) -> tuple[Axis | None, Axis | None] | None:
    """The axis that a layer sums over and the axis of its results; None for any other operator."""
    if node.domain not in ("", "ai.onnx") or len(node.inputs) < 2 or node.op_type not in _AXES:
        return None
    x, weight, y = node.inputs[0], node.inputs[1], node.outputs[0]
    if x is None or array_of(weight) is None or array_of(x) is not None or x.shape is None or y.shape is None:
        return None
    inside, outside = _AXES[node.op_type]
    if node.op_type == "Gemm" and (transposed := node.attributes.get("transA")) is not None and transposed.as_int():
        inside = 0
    return _axis(x, inside), _axis(y, outside)


_AXES = {"Conv": (1, 1), "ConvTranspose": (1, 1), "Gemm": (1, 1), "MatMul": (-1, -1)}


def _axis(value: ir.Value, dim: int) -> Axis | None:
    assert value.shape is not None
    axis = Axis(value, dim % len(value.shape)) if len(value.shape) > abs(dim) - (dim < 0) else None
    return axis if axis in axes_of(value) else None


def _find_couplings(analysis: Analysis, permission: Permission, layers: Sequence[Layer]) -> list[Coupling]:
    """One coupling for every set of axes around the layers that could keep more than they do."""
    couplings: list[Coupling] = []
    equal: set[Axis] = set()  # axes that gain what a coupling's own axis gains
    touched: set[Axis] = set()
    outputs = [layer.outputs for layer in layers if layer.outputs is not None]
    # what is read without being any layer's output (an embedding, say) comes second, unless layers make it up
    inputs = [layer.inputs for layer in layers if layer.inputs is not None]
    for axis in [*outputs, *inputs]:
        removable = permission.removable(axis)
        if axis in equal or not removable.any() or removable.all() or (axis in touched and axis not in outputs):
            continue
        gains, kept = _least_gains(analysis, permission, axis), _count(permission, axis)
        couplings.append(Coupling(axis, kept, axis.size, gains[axis], gains))
        touched.update(gains)
        equal.update(
            other
            for other, gain in gains.items()
            if gain == gains[axis] and other.size == axis.size and _count(permission, other) == kept
        )
    return couplings


def _least_gains(analysis: Analysis, permission: Permission, axis: Axis) -> dict[Axis, int]:
    """What must stay besides when the axis keeps one index more, for the index that drags least along."""
    candidates = _candidates(analysis, permission, axis)
    tried = candidates[:: max(1, len(candidates) // _INDICES_TRIED)]
    return min((permission.gains(axis, _only(axis, index)) for index in tried), key=lambda gains: sum(gains.values()))


def _pad(analysis: Analysis, permission: Permission, coupling: Coupling, wanted: int) -> bool:
    axis, padded = coupling.axis, False
    for index in _candidates(analysis, permission, axis):
        if _count(permission, axis) >= wanted:
            break
        mask = _only(axis, index)
        if not permission.removable(axis)[index] or permission.gains(axis, mask).get(axis) != coupling.step:
            continue
        permission.withhold(axis, mask, np.full(axis.size, PADDING, np.int32))
        permission.resume()
        padded = True
    return padded


def _candidates(analysis: Analysis, permission: Permission, axis: Axis) -> list[int]:
    """Removable indices, exact zeros first, then constants: what nobody needs may hold any finite number."""
    known = analysis.facts.is_known(axis)
    order = np.where(analysis.facts.is_zero(axis), 0, np.where(known, 1, 2))
    indices = np.flatnonzero(permission.removable(axis))
    return [int(index) for index in indices[np.argsort(order[indices], kind="stable")]]


def _count(permission: Permission, axis: Axis | None) -> int:
    return 1 if axis is None else int((~permission.removable(axis)).sum())


def _only(axis: Axis, index: int) -> Mask:
    mask = np.zeros(axis.size, bool)
    mask[index] = True
    return mask
