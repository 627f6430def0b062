"""Models that run some of their blocks for some inputs only: what they say of themselves, what they spend, what pays.

Description     ConditionalBlock, ConditionalModel, read_conditional
"""

from l0runtime.conditional.metadata import ConditionalBlock as ConditionalBlock
from l0runtime.conditional.metadata import ConditionalModel as ConditionalModel
from l0runtime.conditional.metadata import read_conditional as read_conditional

__all__ = ["ConditionalBlock", "ConditionalModel", "read_conditional"]
