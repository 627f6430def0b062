"""Blocks that a gate masks for some inputs become control flow that skips them.

    settle     gates that always decide alike are no gates              (settle.py, bounds.py)
    find       which part of the graph only serves a gate               (regions.py, values.py)
    rows       does the block treat samples one by one?                 (rows.py)
    outline    If with the weights in the branch, gather and scatter    (outline.py, nodes.py)
    check      masked against conditional on every path                 (checking.py)
    describe   what each block costs; is it worth a branch?             (describe.py, measure.py)

It comes after the compaction, so static gates in a block have done their work on it. `stage.py` is the whole of it.
"""

from converters.conditional.outline import Outlined as Outlined
from converters.conditional.outline import outline as outline
from converters.conditional.settle import Settled as Settled
from converters.conditional.settle import settle_gates as settle_gates
from converters.conditional.stage import ConditionalStage as ConditionalStage
from converters.conditional.stage import has_conditional_blocks as has_conditional_blocks
from converters.conditional.stage import make_conditional as make_conditional

__all__ = [
    "ConditionalStage",
    "Outlined",
    "Settled",
    "has_conditional_blocks",
    "make_conditional",
    "outline",
    "settle_gates",
]
