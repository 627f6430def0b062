"""Which removable indices stay after all: representatives of folded constants or twins, and no empty axis.

Both only withhold, and each round is followed by another solve, so the result is still a fixpoint.
"""

from __future__ import annotations

import numpy as np

from converters.compaction.analysis import Analysis
from converters.compaction.axes import Axis, Mask, Permission
from converters.compaction.relations import Contract
from converters.compaction.vanishing import Vanishing

# A twin that takes over others is multiplied by the ratio of the scales, and with it the rounding of its offset is
# (slice i = scales[i] * u + offsets[i]). So its scale may not be much smaller than the largest one among them, nor,
# where it was not chosen for its offset, its offset much larger.
_SMALLEST_SCALE = 0.1
_LARGEST_OFFSET = 10.0


def choose(analysis: Analysis, permission: Permission) -> dict[Contract, int]:
    """Withhold representatives and last indices until nothing changes.

    Returns:
        The representative index of each contraction that folds constants, or twins, into one.
    """
    while True:
        # what vanishes only ever gets less while indices are withheld, so a choice never becomes wrong
        vanishing = Vanishing(analysis, permission)
        representatives, changed = _choose_representatives(analysis, permission, vanishing)
        if changed:
            continue
        twins, changed = _choose_twins(analysis, permission, vanishing)
        if not changed and not _keep_one_index_of_each_axis(permission, vanishing):
            return representatives | twins


def _keep_one_index_of_each_axis(permission: Permission, vanishing: Vanishing) -> bool:
    # onnxruntime rejects axes of size 0, so an axis may be empty only where its value disappears
    empty = [axis for axis in permission.axes if permission.removable(axis).all() and not vanishing.goes(axis.value)]
    for axis in empty:
        if permission.removable(axis).all():
            permission.withhold(axis, _only(axis, 0))
            permission.resume()
    return bool(empty)


def _choose_representatives(
    analysis: Analysis, permission: Permission, vanishing: Vanishing
) -> tuple[dict[Contract, int], bool]:
    chosen: dict[Contract, int] = {}
    changed = False
    for relation in analysis.relations:
        if not isinstance(relation, Contract) or relation.fold != "representative":
            continue
        going = relation.constants_to_fold(analysis.facts, permission)
        if going.size == 0 or vanishing.node_goes(relation.node):
            continue
        constants = analysis.facts.constants(relation.data)
        assert constants is not None
        # A constant index that stays anyway is free. It must be needed: what nobody needs may hold
        # anything once its own inputs have been cut.
        staying = np.flatnonzero(
            ~permission.removable(relation.taken)
            & analysis.live.needed(relation.data)
            & np.isfinite(constants)
            & (constants != 0)
        )
        candidates = staying if staying.size else going
        index = int(candidates[np.argmax(np.abs(constants[candidates]))])
        if not staying.size:
            permission.withhold(relation.taken, _only(relation.taken, index))
            permission.resume()
            changed = True
        chosen[relation] = index
    return chosen, changed


def _choose_twins(analysis: Analysis, permission: Permission, vanishing: Vanishing) -> tuple[dict[Contract, int], bool]:
    chosen: dict[Contract, int] = {}
    changed = False
    for relation in analysis.relations:
        if not isinstance(relation, Contract) or not relation.folds_twins or vanishing.node_goes(relation.node):
            continue
        twins = analysis.facts.twins(relation.data)
        if twins is None:
            continue
        going = relation.twins_to_fold(analysis.facts, permission)
        if going.size == 0:
            continue
        scales, offsets = np.abs(twins.scales), np.abs(twins.offsets)
        suitable = scales >= _SMALLEST_SCALE * scales[going].max()
        # one that stays anyway is free; it must be needed, as for constants
        staying = np.flatnonzero(
            ~permission.removable(relation.taken)
            & analysis.live.needed(relation.data)
            & suitable
            & (offsets <= _LARGEST_OFFSET * offsets[going].max())
        )
        candidates = staying if staying.size else going[suitable[going]]
        index = int(candidates[np.argmin(offsets[candidates] / scales[candidates])])
        if not staying.size:
            permission.withhold(relation.taken, _only(relation.taken, index))
            permission.resume()
            changed = True
        chosen[relation] = index
    return chosen, changed


def _only(axis: Axis, index: int) -> Mask:
    mask = np.zeros(axis.size, bool)
    mask[index] = True
    return mask
