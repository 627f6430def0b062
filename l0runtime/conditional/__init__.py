"""Models that run some of their blocks for some inputs only: what they say of themselves, what they spend, what pays.

Description     ConditionalBlock, ConditionalModel, read_conditional
Counting        Executions; CountingSession in counting.py, made by `l0runtime.load(..., count_blocks=True)`;
                work at any input shape in unrolled.py
Driving gates   force_gates, forced_inputs (forcing.py); cost against rate in sweep.py
"""

from l0runtime.conditional.executions import Executions as Executions
from l0runtime.conditional.metadata import ConditionalBlock as ConditionalBlock
from l0runtime.conditional.metadata import ConditionalModel as ConditionalModel
from l0runtime.conditional.metadata import read_conditional as read_conditional

__all__ = ["ConditionalBlock", "ConditionalModel", "Executions", "read_conditional"]
