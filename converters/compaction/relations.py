"""Which relations between axes does the engine know, and what does each mean for facts, need and permission?

Operators are stated as a few relations; nothing else about an operator reaches the analysis. Each relation
has three steps, and soundness is local to them:

- `forward` may only claim constants that hold for every input of the model;
- `require` must mark every slice of an input on which a needed slice of an output can depend;
- `shrink` must withhold every removal after which the operator could not produce the slices that stay.

| relation | meaning |
|---|---|
| `Tie` | the same index space, position by position |
| `Same` | a tie whose numbers pass through unchanged |
| `Select` | output j is input index[j], or a filler (Slice, Split, Gather, Pad) |
| `Whole` | an output index is made of several source indices (DepthToSpace) |
| `Take` | just these indices are read, the axis itself goes |
| `Concatenate` | the output is the inputs one after another |
| `Product` | a product of axes equals a product of axes, in row-major order (Reshape, Flatten) |
| `Contract` | a sum over the axis, with or without a weight |
| `Grouped` | a grouped contraction: whole groups, then the same number of survivors in each |
| `Unread` | the node does not look along this axis |
| `Pin` | everything stays, with a reason |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.axes import Axis, Constants, Facts, Liveness, Mask, Permission, Twins
from converters.compaction.quantised_weights import RECIPE

Fold = Literal["zero", "bias", "representative"]


class Relation:
    """Base of all relations: which node states it, and which axes it covers.

    Attributes:
        severed: axes of operands that become initializers, so that this relation no longer reads them.
        selected: an axis of which a Gather in front of the node takes just the indices that the node uses,
            so that the others may stay on that axis without staying in the node.
    """

    evens_out = False

    def __init__(self, node: ir.Node | None, axes: Sequence[Axis]) -> None:
        self.node = node
        self.axes = tuple(dict.fromkeys(axes))
        self.severed: frozenset[Axis] = frozenset()
        self.selected: Axis | None = None

    @property
    def reason(self) -> str:
        """Why this relation keeps an index that is dead, as a clause for people."""
        raise NotImplementedError

    def forward(self, facts: Facts) -> None:
        """Propagate constants from inputs to outputs."""

    def require(self, live: Liveness, facts: Facts) -> None:
        """Propagate need from outputs to inputs."""

    def shrink(self, permission: Permission) -> None:
        """Withhold what must stay, given what else stays."""

    def even_out(self, permission: Permission) -> None:
        """Withhold what makes counts equal; runs after all `shrink` steps have settled."""


class Pin(Relation):
    """Every index of the axis stays and is needed."""

    def __init__(self, node: ir.Node | None, axis: Axis, reason: str) -> None:
        super().__init__(node, [axis])
        self._reason = reason

    @property
    def reason(self) -> str:
        return self._reason

    def require(self, live: Liveness, facts: Facts) -> None:
        live.need(self.axes[0], True)

    def shrink(self, permission: Permission) -> None:
        permission.withhold(self.axes[0], np.ones(self.axes[0].size, bool))


class Unread(Relation):
    """The node does not read along this axis at all (a Shape that asks for other dimensions)."""

    def __init__(self, node: ir.Node, axis: Axis) -> None:
        super().__init__(node, [axis])

    @property
    def reason(self) -> str:
        return "nothing"


class Tie(Relation):
    """All axes share one index space: index i stays in all of them or goes from all of them.

    Args:
        inputs, outputs: axes of equal size.
        transfer: constants of the outputs, computed from the facts; None claims nothing.
        unread: which indices of an input the outputs do not depend on; None means all are read.
        twins: twins of the outputs, computed from the facts; None claims nothing.
    """

    def __init__(
        self,
        node: ir.Node | None,
        inputs: Sequence[Axis],
        outputs: Sequence[Axis],
        transfer: Callable[[Facts], Constants | None] | None = None,
        unread: Callable[[Facts, Axis], Mask | None] | None = None,
        twins: Callable[[Facts], Twins | None] | None = None,
    ) -> None:
        super().__init__(node, [*inputs, *outputs])
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.transfer = transfer
        self._unread = unread
        self._twins = twins

    @property
    def reason(self) -> str:
        return "it shares its index with an axis that stays"

    def forward(self, facts: Facts) -> None:
        if self.transfer is not None:
            constants = self.transfer(facts)
            for output in self.outputs:
                facts.learn(output, constants)
        if self._twins is not None:
            twins = self._twins(facts)
            for output in self.outputs:
                facts.learn_twins(output, twins)

    def require(self, live: Liveness, facts: Facts) -> None:
        needed = np.zeros(self.axes[0].size, bool)
        for output in self.outputs:
            needed |= live.needed(output)
        for axis in self.inputs:
            if axis in self.severed:
                continue
            unread = None if self._unread is None else self._unread(facts, axis)
            live.need(axis, needed if unread is None else needed & ~unread)

    def shrink(self, permission: Permission) -> None:
        tied = [axis for axis in self.axes if axis not in self.severed] if self.severed else self.axes
        for source in tied:
            kept = ~permission.removable(source)
            if kept.any() and source != self.selected:
                for target in tied:
                    if target is not source:
                        permission.withhold(target, kept, permission.cause(source))


class Same(Tie):
    """The output axis is the input axis, number for number: everything known of one holds for the other."""

    def __init__(self, node: ir.Node | None, source: Axis, output: Axis) -> None:
        super().__init__(
            node,
            [source],
            [output],
            transfer=lambda facts: facts.constants(source),
            twins=lambda facts: facts.twins(source),
        )


class Select(Relation):
    """Output index j is source index `index[j]`; -1 stands for a filler that is no part of the source.

    Args:
        free: whether an output index may go while its source stays (a Gather may; a Slice or a Split
            takes whole ranges, so there both go together). Fillers may always go.
        filler: the constant behind index -1, NaN if it is not one constant.
    """

    def __init__(
        self,
        node: ir.Node | None,
        source: Axis,
        output: Axis,
        index: NDArray[np.int64],
        *,
        free: bool,
        filler: float = float("nan"),
    ) -> None:
        super().__init__(node, [source, output])
        self.source, self.output = source, output
        self.index, self.free, self._filler = index, free, filler
        self._taken = np.flatnonzero(index >= 0)
        self._from = index[self._taken]

    @property
    def reason(self) -> str:
        return "another part of the tensor that it is taken from, or taken into, stays"

    def forward(self, facts: Facts) -> None:
        known = facts.constants(self.source)
        constants = np.full(self.output.size, self._filler)
        if known is not None:
            constants[self._taken] = known[self._from]
        else:
            constants[self._taken] = np.nan
        facts.learn(self.output, constants)

    def require(self, live: Liveness, facts: Facts) -> None:
        needed = np.zeros(self.source.size, bool)
        needed[self._from[live.needed(self.output)[self._taken]]] = True
        live.need(self.source, needed)

    def shrink(self, permission: Permission) -> None:
        out_kept = ~permission.removable(self.output)[self._taken]
        kept = np.zeros(self.source.size, bool)
        kept[self._from[out_kept]] = True
        cause = np.full(self.source.size, -1, np.int32)
        cause[self._from[out_kept]] = permission.cause(self.output)[self._taken][out_kept]
        permission.withhold(self.source, kept, cause)
        if not self.free:
            kept = np.zeros(self.output.size, bool)
            kept[self._taken] = ~permission.removable(self.source)[self._from]
            cause = np.full(self.output.size, -1, np.int32)
            cause[self._taken] = permission.cause(self.source)[self._from]
            permission.withhold(self.output, kept, cause)


class Whole(Relation):
    """Each output index is made of several source indices, which stay together or go together.

    Args:
        owner: for each source index the output index that it belongs to; shape [source.size].
    """

    def __init__(self, node: ir.Node | None, source: Axis, output: Axis, owner: NDArray[np.int64]) -> None:
        super().__init__(node, [source, output])
        self.source, self.output, self.owner = source, output, owner

    @property
    def reason(self) -> str:
        return "it makes one output together with an index that stays"

    def forward(self, facts: Facts) -> None:
        known = facts.constants(self.source)
        if known is None:
            return
        first = np.full(self.output.size, np.nan)
        first[self.owner[::-1]] = known[::-1]
        differs = np.zeros(self.output.size, bool)
        np.logical_or.at(differs, self.owner, known != first[self.owner])
        facts.learn(self.output, np.where(differs, np.nan, first))

    def require(self, live: Liveness, facts: Facts) -> None:
        live.need(self.source, live.needed(self.output)[self.owner])

    def shrink(self, permission: Permission) -> None:
        kept = ~permission.removable(self.output)
        kept[self.owner[~permission.removable(self.source)]] = True
        permission.withhold(self.output, kept)
        permission.withhold(self.source, kept[self.owner])


class Take(Relation):
    """The node reads just these indices of an axis that its output no longer has."""

    def __init__(self, node: ir.Node | None, source: Axis, index: NDArray[np.int64]) -> None:
        super().__init__(node, [source])
        self.source, self.index = source, index

    @property
    def reason(self) -> str:
        return "its reader takes exactly this index"

    def _taken(self) -> Mask:
        taken = np.zeros(self.source.size, bool)
        taken[self.index] = True
        return taken

    def require(self, live: Liveness, facts: Facts) -> None:
        live.need(self.source, self._taken())

    def shrink(self, permission: Permission) -> None:
        permission.withhold(self.source, self._taken())


class Concatenate(Relation):
    """The output axis is the input axes one after another.

    Args:
        parts: for each input in order its axis, or its length where the axis has length 1.
    """

    def __init__(self, node: ir.Node | None, parts: Sequence[Axis | int], output: Axis) -> None:
        super().__init__(node, [*(part for part in parts if isinstance(part, Axis)), output])
        self.output = output
        self.parts: list[tuple[Axis | None, slice]] = []
        start = 0
        for part in parts:
            size = part.size if isinstance(part, Axis) else part
            self.parts.append((part if isinstance(part, Axis) else None, slice(start, start + size)))
            start += size

    @property
    def reason(self) -> str:
        return "it is concatenated with, or cut from, a tensor whose reader keeps it"

    def forward(self, facts: Facts) -> None:
        constants = np.full(self.output.size, np.nan)
        for (axis, where), value in zip(self.parts, self._values(), strict=True):
            if axis is None:
                constants[where] = facts.scalar(value) if value is not None else np.nan
            else:
                known = facts.constants(axis)
                if known is not None:
                    constants[where] = known
        facts.learn(self.output, constants)

    def _values(self) -> list[ir.Value | None]:
        assert self.node is not None
        return list(self.node.inputs)

    def require(self, live: Liveness, facts: Facts) -> None:
        needed = live.needed(self.output)
        for axis, where in self.parts:
            if axis is not None:
                live.need(axis, needed[where])

    def shrink(self, permission: Permission) -> None:
        out = self.output
        for axis, where in self.parts:
            kept = np.zeros(out.size, bool)
            if axis is None:
                kept[where] = True  # an input of length 1 is not cut, so its index stays
                permission.withhold(out, kept)
                continue
            permission.withhold(axis, ~permission.removable(out)[where], permission.cause(out)[where])
            kept[where] = ~permission.removable(axis)
            cause = np.full(out.size, -1, np.int32)
            cause[where] = permission.cause(axis)
            permission.withhold(out, kept, cause)


class Product(Relation):
    """A row-major product of axes equals another one: Reshape, Flatten, Squeeze of static dimensions.

    What stays must be a full grid on both sides: an index of one axis goes only when the whole slab of
    the product that it stands for goes.
    """

    def __init__(self, node: ir.Node | None, sources: Sequence[Axis], outputs: Sequence[Axis]) -> None:
        super().__init__(node, [*sources, *outputs])
        self.sources, self.outputs = tuple(sources), tuple(outputs)

    @property
    def reason(self) -> str:
        return "a reshape couples it with indices that stay"

    @staticmethod
    def _grid(axes: Sequence[Axis], vectors: Sequence[NDArray[np.generic]], combine: np.ufunc) -> NDArray[np.generic]:
        grid = vectors[0]
        for vector in vectors[1:]:
            grid = combine(grid[..., None], vector)
        return grid

    @staticmethod
    def _project(axes: Sequence[Axis], flat: Mask) -> list[Mask]:
        grid = flat.reshape([axis.size for axis in axes])
        others = [tuple(d for d in range(len(axes)) if d != dim) for dim in range(len(axes))]
        return [np.asarray(grid.any(axis=dims)).reshape(-1) for dims in others]

    def forward(self, facts: Facts) -> None:
        known = [facts.constants(axis) for axis in self.sources]
        if all(vector is None for vector in known):
            return
        shape = [axis.size for axis in self.sources]
        grid = np.full(shape, np.nan)
        for dim, vector in enumerate(known):
            if vector is not None:
                along = vector.reshape([-1 if d == dim else 1 for d in range(len(shape))])
                grid = np.where(np.isnan(grid), along, grid)
        grid = grid.reshape([axis.size for axis in self.outputs])
        for dim, axis in enumerate(self.outputs):
            slabs = np.moveaxis(grid, dim, 0).reshape(axis.size, -1)
            facts.learn(axis, np.where((slabs == slabs[:, :1]).all(axis=1), slabs[:, 0], np.nan))

    def require(self, live: Liveness, facts: Facts) -> None:
        needed = self._grid(self.outputs, [live.needed(axis) for axis in self.outputs], np.logical_and)
        for axis, mask in zip(self.sources, self._project(self.sources, needed.astype(bool).ravel()), strict=True):
            live.need(axis, mask)

    def shrink(self, permission: Permission) -> None:
        if all(permission.removable(axis).all() for axis in self.axes):
            return
        kept = np.zeros(int(np.prod([axis.size for axis in self.sources])), bool)
        for side in (self.sources, self.outputs):
            kept |= self._grid(side, [~permission.removable(axis) for axis in side], np.logical_and).ravel()
        for side in (self.sources, self.outputs):
            for axis, mask in zip(side, self._project(side, kept), strict=True):
                permission.withhold(axis, mask)


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
            self.read = self.read & ~facts.is_zero(self.weight)
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

    @property
    def reason(self) -> str:
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

    def _kept(self, permission: Permission, axis: Axis) -> Mask:
        kept: Mask = ~permission.removable(axis).reshape(self.groups, -1)
        return kept

    def shrink(self, permission: Permission) -> None:
        kept = np.hstack([self._kept(permission, self.output), self._kept(permission, self.data)])
        alive: Mask = np.logical_or.reduce(kept, axis=1)
        # a living group reads what it is not permitted to lose; a dead one reads nothing
        permission.withhold(self.data, (~self.permitted.reshape(self.groups, -1) & alive[:, None]).ravel())
        self._keep_at_least(permission, self.data, alive.astype(np.int64))
        self._keep_at_least(permission, self.output, alive.astype(np.int64))

    def even_out(self, permission: Permission) -> None:
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
