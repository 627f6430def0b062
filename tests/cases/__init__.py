"""Which small gated graphs must the engine convert, and what must go in each?

`CASES` maps a name to its `Case`; every file beside this one enters one family of operators.
"""

from cases import (  # noqa: F401
    attention,
    blocks,
    convolution,
    corners,
    depth,
    elementwise,
    elsewhere,
    formats,
    gate_forms,
    layout,
    linear,
    multiplier,
    normalization,
    pooling,
    quantised,
    rare,
    recurrent,
    silence,
    subgraphs,
)
from cases.table import CASES, Case

__all__ = ["CASES", "Case"]
