"""Gates that look at the input and let blocks run for some samples only. Needs torch.

Gate            ConditionalGate
Blocks          Conditional, EarlyExit, ConfidenceExit
Objective       ConditionalPenalty, shape_distance, conditional_gates
Accounting      execution_rates, ExecutionRates, block_macs, total_macs
Network         ConditionalResNet
"""

from l0runtime.gates.conditional.accounting import ExecutionRates as ExecutionRates
from l0runtime.gates.conditional.accounting import block_macs as block_macs
from l0runtime.gates.conditional.accounting import execution_rates as execution_rates
from l0runtime.gates.conditional.accounting import total_macs as total_macs
from l0runtime.gates.conditional.blocks import Conditional as Conditional
from l0runtime.gates.conditional.blocks import ConfidenceExit as ConfidenceExit
from l0runtime.gates.conditional.blocks import EarlyExit as EarlyExit
from l0runtime.gates.conditional.gate import ConditionalGate as ConditionalGate
from l0runtime.gates.conditional.objective import ConditionalPenalty as ConditionalPenalty
from l0runtime.gates.conditional.objective import conditional_gates as conditional_gates
from l0runtime.gates.conditional.objective import shape_distance as shape_distance
from l0runtime.gates.conditional.resnet import ConditionalResNet as ConditionalResNet

__all__ = [
    "Conditional",
    "ConditionalGate",
    "ConditionalPenalty",
    "ConditionalResNet",
    "ConfidenceExit",
    "EarlyExit",
    "ExecutionRates",
    "block_macs",
    "conditional_gates",
    "execution_rates",
    "shape_distance",
    "total_macs",
]
