"""Relations that say where each index goes: taken, regrouped, joined or reshaped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from converters.compaction.axes import Axis, Facts, Liveness, Mask, Permission
from converters.compaction.relations.base import Relation


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
