"""How often does each block run, and what does a sample cost on average?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from l0runtime.gates.conditional.blocks import bodies_of_gates
from l0runtime.gates.conditional.objective import conditional_gates


@dataclass(frozen=True)
class ExecutionRates:
    """Decisions of an evaluation.

    Args:
        runs: by qualified name of the gate, bool [samples]: the block ran.
        macs: multiply-accumulates for each sample, [samples].
    """

    runs: dict[str, Tensor]
    macs: Tensor

    @property
    def rates(self) -> dict[str, float]:
        """Share of the samples that each block ran for."""
        return {name: float(ran.float().mean()) for name, ran in self.runs.items()}

    @property
    def mean_macs(self) -> float:
        """Average multiply-accumulates for one sample."""
        return float(self.macs.double().mean())


def block_macs(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Multiply-accumulates of each conditional block for one sample, by the qualified name of its gate.

    Convolutions and matrix products, those of attention included, and nothing else; blocks within a block are not
    counted as its own.

    Args:
        model: with Conditional or EarlyExit modules.
        example: one batch of inputs.
    """
    work, bodies = _macs_of_modules(model, example), bodies_of_gates(model)
    own: dict[str, int] = {}
    for gate, body in bodies.items():
        inner = [other for other in bodies.values() if other.startswith(f"{body}.")]
        outermost = [name for name in inner if not any(name.startswith(f"{other}.") for other in inner)]
        own[gate] = work.get(body, 0) - sum(work.get(name, 0) for name in outermost)
    return own


def total_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates for one sample for which every block runs, gates included."""
    return _macs_of_modules(model, example)[""]


@torch.no_grad()
def execution_rates(model: nn.Module, inputs: Tensor, batch_size: int = 500) -> ExecutionRates:
    """Run a model in eval() mode and note which blocks run; leaves its mode as it was.

    Args:
        model: with conditional gates.
        inputs: samples, batch first.
        batch_size: samples at a time.
    """
    was_training = model.training
    model.eval()
    gates, work = conditional_gates(model), block_macs(model, inputs[:1])
    always = total_macs(model, inputs[:1]) - sum(work.values())
    own: dict[str, list[Tensor]] = {name: [] for name in gates}
    handles = [
        gate.register_forward_hook(lambda _, __, values, name=name: own[name].append(values > 0))
        for name, gate in gates.items()
    ]
    try:
        for batch in torch.split(inputs, batch_size):
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    alone = {name: torch.cat(parts) for name, parts in own.items()}
    bodies = bodies_of_gates(model)
    runs = {name: _with_parents(name, alone, bodies) for name in alone}
    macs = torch.full((len(inputs),), float(always), dtype=torch.float64)
    for name, ran in runs.items():
        macs += ran.double() * work.get(name, 0)
    return ExecutionRates(runs, macs)


def _with_parents(name: str, alone: dict[str, Tensor], bodies: dict[str, str]) -> Tensor:
    """A block within another runs where both do."""
    ran = alone[name]
    for other, decided in alone.items():
        if other != name and other in bodies and name.startswith(f"{bodies[other]}."):
            ran = ran & decided
    return ran


def _macs_of_modules(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Of every module by qualified name, "" for the whole model, modules within it included."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), _evaluating(model), _plain_attention(), counter:
        model(example[:1])
    root = type(model).__name__
    found = {"": counter.get_total_flops() // 2}
    for name, by_operator in counter.get_flop_counts().items():
        if name.startswith(f"{root}."):
            found[name.removeprefix(f"{root}.")] = sum(by_operator.values()) // 2
    return found


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention in plain products: torch's fused operators are not all known to the counter."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
