"""Which grouped convolutions with one input per group may become depthwise ones behind a Gather?

Such a convolution makes k outputs of every input. As one operator it ties both sides: an input stays as long as one of
its outputs does, and all inputs keep equally many outputs. Between two streams of channels that are gated each for
itself it holds up both, through the whole network. Spread, every output that stays is a group of its own and reads
its input through a constant Gather: output j takes input floor(j / k), and each side follows its own readers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from converters.compaction.analysis import Analysis
from converters.compaction.axes import Axis, Permission
from converters.compaction.relations import Grouped
from converters.compaction.selection import Selection


@dataclass(frozen=True)
class Spreading:
    """All convolutions of this kind that read one axis; those that need the same indices share a Gather."""

    source: Axis
    relations: tuple[Grouped, ...]

    def take(self, taken: bool) -> None:
        """Mark the relations, or take the mark back."""
        for relation in self.relations:
            relation.spread = taken

    def gathers(self, permission: Permission) -> list[tuple[Axis, int]]:
        """As in `trials.Option`."""
        needed: dict[bytes, tuple[Axis, int]] = {}
        staying = np.flatnonzero(~permission.removable(self.source))
        for relation in self.relations:
            if staying.size and not permission.removable(relation.output).all():
                taken = relation.taken(permission)
                if not np.array_equal(taken, staying):
                    needed[taken.tobytes()] = self.source, taken.size
        return list(needed.values())

    def selections(self) -> list[Selection]:
        """None: the fixup of the convolution writes its Gather."""
        return []


def spreading_options(analysis: Analysis) -> list[Spreading]:
    """One for each axis that is read so, in graph order."""
    found: dict[Axis, list[Grouped]] = {}
    for relation in analysis.relations:
        if isinstance(relation, Grouped) and relation.can_spread:
            found.setdefault(relation.data, []).append(relation)
    return [Spreading(source, tuple(relations)) for source, relations in found.items()]
