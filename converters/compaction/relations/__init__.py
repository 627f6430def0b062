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
| `Grouped` | a grouped contraction: whole groups, then the same number of survivors in each, or spread by a Gather |
| `Unread` | the node does not look along this axis |
| `Pin` | everything stays, with a reason |
"""

from converters.compaction.relations.base import Pin, Relation, Unread
from converters.compaction.relations.places import Concatenate, Product, Select, Take, Whole
from converters.compaction.relations.sums import Contract, Fold, Grouped
from converters.compaction.relations.ties import Same, Tie

__all__ = [
    "Concatenate",
    "Contract",
    "Fold",
    "Grouped",
    "Pin",
    "Product",
    "Relation",
    "Same",
    "Select",
    "Take",
    "Tie",
    "Unread",
    "Whole",
]
