"""Relations of weighted sums: an index goes when what it adds to the sum is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.axes import Axis, Facts, Liveness, Mask, Permission, is_constant
from converters.compaction.quantised_weights import RECIPE
from converters.compaction.relations.base import Relation

Fold = Literal["zero", "bias", "representative"]


class Contract(Relation):
    """A sum over `data`, index by index with `weight`: an index goes when what it adds is known.

    Permitted are indices that nothing reads (their weights are zero for every needed output), that are
    exactly zero, and, as far as `fold` says, that are constant:

    - `zero`: only exact zeros may go;
    - `bias`: a constant may go, its contribution is added to the bias;
    - `representative`: a constant may go as long as another constant index of the same axis stays and
      takes over its weights (what is left is exact behind zero padding too).

    With `bias`, twins (slices that are affine in one unknown) may go too, as long as one of them stays
    and takes over their weights.

    Args:
        weight: the axis of the other operand, None for plain sums.
        folds_twins: whether the fixup can merge twins.
        reads: for which indices the weights matter, given the need of the outputs; shape [data.size].
    """

    def __init__(
        self,
        node: ir.Node,
        data: Axis,
        weight: Axis | None,
        *,
        fold: Fold,
        reads: Callable[[Liveness, Facts], Mask],
        folds_twins: bool = False,
    ) -> None:
        super().__init__(node, [data] if weight is None else [data, weight])
        # what takes over the weights of others needs new numbers, which a quantised weight cannot hold exactly
        quantised = weight is not None and RECIPE in weight.value.meta
        self.data, self.weight, self.fold = data, weight, "zero" if quantised and fold == "representative" else fold
        self.folds_twins = folds_twins and not quantised
        self._reads = reads
        self.read: Mask = np.ones(data.size, bool)
        self.permitted: Mask = np.zeros(data.size, bool)
        # input-independent indices whose contribution is added as a map behind the node
        self.mapped: Mask | None = None

    @property
    def reason(self) -> str:
        return "its reader uses it: the weights are not zero, and a constant cannot be folded there"

    def require(self, live: Liveness, facts: Facts) -> None:
        zero = facts.is_zero(self.data)
        self.read = self._reads(live, facts)
        if self.weight is not None:
            live.need(self.weight, self.read & ~zero)
            silent = facts.is_zero(self.weight)
            if not is_constant(self.weight.value):
                silent &= ~zero  # where both are computed zeros, one must really be computed
            live.need(self.data, self.read & ~silent)
            self.read = self.read & ~facts.is_zero(self.weight)
        else:
            live.need(self.data, self.read)
        self.permitted = ~self.read | zero
        if self.fold != "zero":
            self.permitted |= facts.is_known(self.data)
        if self.folds_twins and (twins := facts.twins(self.data)) is not None:
            self.permitted |= twins.known
        if self.mapped is not None:
            self.permitted |= self.mapped

    def shrink(self, permission: Permission) -> None:
        permission.withhold(self.taken, ~self.permitted)
        if self.weight is not None:
            if self.selected != self.data:
                permission.withhold(self.weight, ~permission.removable(self.data), permission.cause(self.data))
            permission.withhold(self.data, ~permission.removable(self.weight), permission.cause(self.weight))

    @property
    def taken(self) -> Axis:
        """The axis that says which indices the sum still runs over: the weight's where a Gather selects."""
        return self.data if self.weight is None or self.selected != self.data else self.weight

    def constants_to_fold(self, facts: Facts, permission: Permission) -> NDArray[np.int64]:
        """Indices that are about to go although they add something: constant, not zero, and read."""
        added = facts.is_known(self.data) & ~facts.is_zero(self.data)
        going = permission.removable(self.taken) & self.read & added
        return np.flatnonzero(going if self.mapped is None else going & ~self.mapped)

    def twins_to_fold(self, facts: Facts, permission: Permission) -> NDArray[np.int64]:
        """Indices that are about to go although they are read and vary: a twin must take over their weights."""
        going = permission.removable(self.taken) & self.read & ~facts.is_known(self.data)
        return np.flatnonzero(going if self.mapped is None else going & ~self.mapped)

    def maps_to_fold(self, permission: Permission) -> NDArray[np.int64]:
        """Indices that are about to go and whose contribution is a map."""
        if self.mapped is None:
            return np.zeros(0, np.int64)
        return np.flatnonzero(permission.removable(self.taken) & self.read & self.mapped)


class Grouped(Relation):
    """Group q of the outputs sums over group q of the inputs, as in a grouped convolution.

    A group goes as a whole when all its outputs go. Groups that stay keep the same number of inputs and
    the same number of outputs each.

    Where every group has one input, the sum may be *spread*: every output becomes a group of its own that reads its
    input through a Gather, so that counts need not be equal. What then stays on the inputs is what the outputs that
    stay read; an output whose input goes keeps its bias.

    Args:
        data: axis of groups * inputs indices; output: axis of groups * outputs indices.
        reads: as in `Contract`.
        constants_fold: whether constant inputs can be folded into a bias.
    """

    evens_out = True

    def __init__(
        self,
        node: ir.Node,
        data: Axis,
        output: Axis,
        groups: int,
        *,
        constants_fold: bool,
        reads: Callable[[Liveness, Facts], Mask],
    ) -> None:
        super().__init__(node, [data, output])
        self.data, self.output, self.groups = data, output, groups
        self.constants_fold = constants_fold
        self._reads = reads
        self.read: Mask = np.ones(data.size, bool)
        self.permitted: Mask = np.zeros(data.size, bool)
        # as in `Contract`
        self.mapped: Mask | None = None
        self.spread = False

    @property
    def can_spread(self) -> bool:
        """Whether every group has one input and several outputs."""
        return self.data.size == self.groups < self.output.size

    def owner(self) -> NDArray[np.int64]:
        """The group of each output, shape [output.size]; where groups have one input, the input that it reads."""
        return np.arange(self.output.size) // (self.output.size // self.groups)

    def taken(self, permission: Permission) -> NDArray[np.int64]:
        """The input that each group will read when the sum is spread, counted in the width before.

        Where all inputs that are read have equally many outputs, they are the groups, as before; otherwise each
        output is one. An output whose input goes may read any, as its filter is zero.
        """
        staying = np.flatnonzero(~permission.removable(self.data))
        read = self.owner()[~permission.removable(self.output)]
        read = np.where(np.isin(read, staying), read, staying[0])
        inputs, counts = np.unique(read, return_counts=True)
        return inputs if (counts == counts[0]).all() and (np.diff(read) >= 0).all() else read

    def forget_choices(self) -> None:
        super().forget_choices()
        self.spread = False

    @property
    def reason(self) -> str:
        if self.spread:
            return "a depthwise convolution reads it, and a constant cannot be folded there"
        return "a grouped convolution needs it: its group stays, and groups must keep equal sizes"

    def require(self, live: Liveness, facts: Facts) -> None:
        self.read = self._reads(live, facts)
        live.need(self.data, self.read)
        self.permitted = ~self.read | facts.is_zero(self.data)
        if self.constants_fold:
            self.permitted |= facts.is_known(self.data)
        if self.mapped is not None:
            self.permitted |= self.mapped

    def maps_to_fold(self, permission: Permission) -> NDArray[np.int64]:
        """Indices that are about to go and whose contribution is a map."""
        if self.mapped is None:
            return np.zeros(0, np.int64)
        return np.flatnonzero(permission.removable(self.data) & self.read & self.mapped)

    def inputs_each(self, permission: Permission) -> int:
        """How many inputs a group keeps at most."""
        return 1 if self.spread else int(self._kept(permission, self.data).sum(axis=1).max())

    def _kept(self, permission: Permission, axis: Axis) -> Mask:
        kept: Mask = ~permission.removable(axis).reshape(self.groups, -1)
        return kept

    def shrink(self, permission: Permission) -> None:
        if self.spread:
            read = np.logical_or.reduce(self._kept(permission, self.output), axis=1)
            permission.withhold(self.data, ~self.permitted & read)
            return
        kept = np.hstack([self._kept(permission, self.output), self._kept(permission, self.data)])
        alive: Mask = np.logical_or.reduce(kept, axis=1)
        # a living group reads what it is not permitted to lose; a dead one reads nothing
        permission.withhold(self.data, (~self.permitted.reshape(self.groups, -1) & alive[:, None]).ravel())
        self._keep_at_least(permission, self.data, alive.astype(np.int64))
        self._keep_at_least(permission, self.output, alive.astype(np.int64))

    def even_out(self, permission: Permission) -> None:
        if self.spread:
            return
        for axis in (self.data, self.output):
            counts = self._kept(permission, axis).sum(axis=1)
            self._keep_at_least(permission, axis, np.where(counts > 0, counts.max(), 0))

    def _keep_at_least(self, permission: Permission, axis: Axis, wanted: NDArray[np.int64]) -> None:
        kept = self._kept(permission, axis)
        missing = wanted - kept.sum(axis=1)
        if (missing <= 0).all():
            return
        more = np.zeros_like(kept)
        for group in np.flatnonzero(missing > 0):
            more[group, np.flatnonzero(~kept[group])[: missing[group]]] = True
        permission.withhold(axis, more.ravel())
