"""Which slices that no output needs must be computed rightly all the same, because garbage could become infinite?

An index that stays although nobody needs it may hold anything: its own inputs were cut away. That is harmless
as long as the reader multiplies it by an exact zero and it is finite, but 0 times 1 / 0 is not 0. So whatever
a division, a root, a logarithm or a power reads at an index that stays is needed.
"""

from __future__ import annotations

from converters.compaction.analysis import Analysis
from converters.compaction.axes import Permission, is_constant
from converters.compaction.registry import operator_key
from converters.compaction.relations import Tie

# operator: the operands that it is not finite for, although they are finite. Exp and its kin overflow, a division by
# zero and the root or the logarithm of what is not positive are none, and a Gather or a Scatter fails on an index out
# of range.
_UNBOUNDED: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        ("Acos", "Acosh", "Asin", "Atanh", "Cosh", "Exp", "Log", "Reciprocal", "Sinh", "Sqrt", "Tan"), (0,)
    ),
    "BatchNormalization": (4,),
    "Div": (1,),
    "Gather": (1,),
    "GatherElements": (1,),
    "GatherND": (1,),
    "Mod": (1,),
    "Pow": (0, 1),
    "ReduceLogSum": (0,),
    "ScatterElements": (1,),
    "ScatterND": (1,),
}


def need_finite_operands(analysis: Analysis, permission: Permission) -> bool:
    """Add to the need what operators that can leave the finite numbers read at indices that stay.

    Returns:
        Whether anything was added; the permissions must then be solved anew.
    """
    live = analysis.live
    added = False
    for node, stated in analysis.of_node.items():
        slots = _UNBOUNDED.get(operator_key(node), ())
        operands = {node.inputs[slot] for slot in slots if slot < len(node.inputs)}
        operands = {value for value in operands if not is_constant(value)}
        if not operands:
            continue
        for relation in stated:
            if not isinstance(relation, Tie):
                continue
            for output in relation.outputs:
                staying = ~permission.removable(output)
                for source in relation.inputs:
                    if source.value not in operands or source in relation.severed:
                        continue
                    if (staying & ~live.needed(source)).any():
                        live.need(source, staying)
                        added = True
    if added:
        for relation in reversed(analysis.relations):
            relation.require(live, analysis.facts)
    return added
