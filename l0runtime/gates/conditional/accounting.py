"""How often does each block run, and what does a sample cost on average?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from l0runtime.gates.conditional.blocks import Conditional, EarlyExit
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

    Linear layers, convolutions, and nothing else; blocks within a block are not counted as its own.

    Args:
        model: with Conditional or EarlyExit modules.
        example: one batch of inputs.
    """
    per_module = _macs_of_modules(model, example)
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, Conditional | EarlyExit):
            body = "body" if isinstance(module, Conditional) else "rest"
            prefix = f"{name}.{body}" if name else body
            found[f"{name}.gate" if name else "gate"] = sum(
                macs for inner, macs in per_module.items() if _innermost(inner, prefix, model)
            )
    return found


def total_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates for one sample for which every block runs, gates included."""
    return sum(_macs_of_modules(model, example).values())


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
    runs = {name: _with_parents(name, alone, model) for name in alone}
    macs = torch.full((len(inputs),), float(always), dtype=torch.float64)
    for name, ran in runs.items():
        macs += ran.double() * work.get(name, 0)
    return ExecutionRates(runs, macs)


def _with_parents(name: str, alone: dict[str, Tensor], model: nn.Module) -> Tensor:
    """A block within another runs where both do."""
    ran = alone[name]
    for other, decided in alone.items():
        module = model.get_submodule(other.rpartition(".")[0]) if "." in other else model
        body = "body" if isinstance(module, Conditional) else "rest"
        prefix = other.removesuffix("gate") + body + "."
        if other != name and name.startswith(prefix):
            ran = ran & decided
    return ran


def _innermost(layer: str, prefix: str, model: nn.Module) -> bool:
    """Whether a layer lies in the block at `prefix` and in no block within that one."""
    if layer != prefix and not layer.startswith(f"{prefix}."):
        return False
    inside = layer.removeprefix(prefix).strip(".")
    path = prefix
    for part in inside.split("."):
        module = model.get_submodule(path)
        if (isinstance(module, Conditional) and part == "body") or (isinstance(module, EarlyExit) and part == "rest"):
            return False
        path = f"{path}.{part}"
    return True


def _macs_of_modules(model: nn.Module, example: Tensor) -> dict[str, int]:
    names = {module: name for name, module in model.named_modules()}
    found: dict[str, int] = {}

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        per_sample = output[0].numel()
        if isinstance(module, nn.Linear):
            macs = per_sample * module.in_features
        else:
            assert isinstance(module, nn.Conv2d)
            macs = per_sample * module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
        found[names[module]] = found.get(names[module], 0) + macs

    handles = [module.register_forward_hook(count) for module in names if isinstance(module, nn.Linear | nn.Conv2d)]
    try:
        with torch.no_grad(), _evaluating(model):
            model(example[:1])
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
