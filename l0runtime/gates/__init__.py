"""Train networks whose units can be switched off by L0 (hard-concrete) gates. Needs torch.

Gates           HardConcrete, EvaluationRule, evaluate_gates, closing_threshold, opening_threshold, Gate
Any model       attach, detach, freeze, thaw, gates_in, GateSpec, AttachedGates, report, GateReport
Layers          GatedLinear, GatedConv2d
Objectives      TargetCost, PaperPenalty, CostModel, expected_l0, gated_layers, gates_of, kept_units
Latency         measure_latency, LatencyTable: the cost of a target, measured on this machine
Training        param_groups, GateWatch, GateWarning, GateProblem,
                Trainer, TrainingOptions, EpochRecord, error_rate,
                write_records, plot_records, progress_bar
Checkpoints     save, load, is_checkpoint, register_architecture
Networks        LeNet300, LeNet5, GatedVGG, WideResNet, ConditionalResNet
Input-dependent gates are in l0runtime.gates.conditional
Small example   train_digits, load_digits, DigitsRun
"""

from l0runtime.gates.attached import AttachedGates as AttachedGates
from l0runtime.gates.attached import gates_in as gates_in
from l0runtime.gates.attaching import attach as attach
from l0runtime.gates.attaching import detach as detach
from l0runtime.gates.attaching import freeze as freeze
from l0runtime.gates.attaching import thaw as thaw
from l0runtime.gates.checkpoint import is_checkpoint as is_checkpoint
from l0runtime.gates.checkpoint import load as load
from l0runtime.gates.checkpoint import save as save
from l0runtime.gates.conditional import ConditionalResNet as ConditionalResNet
from l0runtime.gates.cost import CostModel as CostModel
from l0runtime.gates.digits import DigitsRun as DigitsRun
from l0runtime.gates.digits import load_digits as load_digits
from l0runtime.gates.digits import train_digits as train_digits
from l0runtime.gates.evaluation import EvaluationRule as EvaluationRule
from l0runtime.gates.evaluation import closing_threshold as closing_threshold
from l0runtime.gates.evaluation import evaluate_gates as evaluate_gates
from l0runtime.gates.evaluation import opening_threshold as opening_threshold
from l0runtime.gates.gate import Gate as Gate
from l0runtime.gates.gate_report import GateReport as GateReport
from l0runtime.gates.gate_report import report as report
from l0runtime.gates.gate_spec import GateSpec as GateSpec
from l0runtime.gates.hard_concrete import HardConcrete as HardConcrete
from l0runtime.gates.latency_measuring import measure_latency as measure_latency
from l0runtime.gates.latency_table import LatencyTable as LatencyTable
from l0runtime.gates.layers import GatedConv2d as GatedConv2d
from l0runtime.gates.layers import GatedLinear as GatedLinear
from l0runtime.gates.lenet import LeNet5 as LeNet5
from l0runtime.gates.lenet import LeNet300 as LeNet300
from l0runtime.gates.parameters import param_groups as param_groups
from l0runtime.gates.penalty import PaperPenalty as PaperPenalty
from l0runtime.gates.penalty import expected_l0 as expected_l0
from l0runtime.gates.penalty import gated_layers as gated_layers
from l0runtime.gates.penalty import gates_of as gates_of
from l0runtime.gates.penalty import kept_units as kept_units
from l0runtime.gates.progress import progress_bar as progress_bar
from l0runtime.gates.records import EpochRecord as EpochRecord
from l0runtime.gates.records import plot_records as plot_records
from l0runtime.gates.records import write_records as write_records
from l0runtime.gates.registry import register_architecture as register_architecture
from l0runtime.gates.targets import TargetCost as TargetCost
from l0runtime.gates.training import Trainer as Trainer
from l0runtime.gates.training import TrainingOptions as TrainingOptions
from l0runtime.gates.training import error_rate as error_rate
from l0runtime.gates.vgg import GatedVGG as GatedVGG
from l0runtime.gates.watch import GateProblem as GateProblem
from l0runtime.gates.watch import GateWarning as GateWarning
from l0runtime.gates.watch import GateWatch as GateWatch
from l0runtime.gates.wide_resnet import WideResNet as WideResNet

__all__ = [
    "AttachedGates",
    "ConditionalResNet",
    "CostModel",
    "DigitsRun",
    "EpochRecord",
    "EvaluationRule",
    "Gate",
    "GateProblem",
    "GateReport",
    "GateSpec",
    "GateWarning",
    "GateWatch",
    "GatedConv2d",
    "GatedLinear",
    "GatedVGG",
    "HardConcrete",
    "LatencyTable",
    "LeNet5",
    "LeNet300",
    "PaperPenalty",
    "TargetCost",
    "Trainer",
    "TrainingOptions",
    "WideResNet",
    "attach",
    "closing_threshold",
    "detach",
    "error_rate",
    "evaluate_gates",
    "expected_l0",
    "freeze",
    "gated_layers",
    "gates_in",
    "gates_of",
    "is_checkpoint",
    "kept_units",
    "load",
    "load_digits",
    "measure_latency",
    "opening_threshold",
    "param_groups",
    "plot_records",
    "progress_bar",
    "register_architecture",
    "report",
    "save",
    "thaw",
    "train_digits",
    "write_records",
]
