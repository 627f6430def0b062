"""Faster training: once gates are closed for good, take them out of the model in place and go on.

    shrinker = Shrinker(trainer)
    trainer.run(after_epoch=shrinker)

The model, its optimizer's state and its moving average lose the same slices; parameters stay the same objects. What a
closed unit leaves behind (a constant that BatchNorm makes of it) moves into a bias or into one closed channel that
stays, so the function in eval mode is the same, which is checked before anything is changed. Training goes on as it
would have with those gates held shut, up to rounding, where a closed unit leaves zero behind; a constant that several
closed channels made together is trained as one afterwards.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils import _pytree as pytree

from converters.dynamic_axes import first_line
from converters.export import export_unoptimised
from converters.module_plan import ModulePlan, ModuleSolution, ParameterAxis, values_in
from converters.plain_copy import plain_copy
from converters.smaller_module import largest_difference
from l0runtime.errors import OptionError, UnsupportedModelError, VerificationError
from l0runtime.gates.attached import gates_in
from l0runtime.gates.gate import Gate
from l0runtime.gates.layers import GatedConv2d, GatedLinear
from l0runtime.gates.penalty import gates_of
from l0runtime.gates.records import EpochRecord
from l0runtime.gates.resizing import laid_out_like, resize
from l0runtime.gates.training import Trainer

Index = NDArray[np.int64]
_TOLERANCE = 1e-5  # float32 sums of up to some thousand terms, in another order
_MARK = "_closed_for_good"


@dataclass(frozen=True)
class Shrinkage:
    """What was taken out of a model.

    Args:
        gates: gates that stay of those that there were, by the name of `gates_of`, for vectors that lost some.
        parameters_before, parameters_after: numbers of parameters, gates included.
        seconds: what it took.
    """

    gates: Mapping[str, tuple[int, int]]
    parameters_before: int
    parameters_after: int
    seconds: float


def shrink(
    model: nn.Module,
    example_inputs: Sequence[Any] | Tensor,
    closed: Mapping[str, Tensor],
    *,
    optimizers: Iterable[torch.optim.Optimizer] = (),
    averages: Iterable[nn.Module] = (),
) -> tuple[Shrinkage, dict[str, Tensor]]:
    """Take closed gates, and all that only they read or wrote, out of a model in place.

    Running statistics of BatchNorm behind a closed channel are set to what they are heading for, as training will only
    ever see that constant there.

    Args:
        model: with gates of l0runtime.gates's own layers, or standing alone; in training or eval mode.
        example_inputs: positional inputs, batch first.
        closed: by the name of `gates_of`, which gates are to go, bool [n]; the evaluation rule must close them, in the
            averages too.
        optimizers: whose state per parameter has the parameter's shape (SGD's momentum, Adam's moments).
        averages: models of the same structure, e.g. the `module` of an AveragedModel.
    Returns:
        What went, and the indices of the gates that stay, int64 [n], by name.
    Raises:
        OptionError: a gate that is to go is not closed.
        UnsupportedModelError: gates that `attach` put in; or the model cannot be traced, or does not run narrower.
        VerificationError: the narrower model gives another answer. In each case nothing has been changed.
    """
    begin = time.perf_counter()
    args = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    models = [model, *averages]
    _check(models, closed)
    plains = [_marked_copy(one, args, closed).cpu() for one in models]
    plans, statistics = _plan(plains, pytree.tree_map(_to_cpu, args))
    gates = _gates_left(model, plans[0])
    for one, plan in zip(models, plans, strict=True):
        _try(one, plan, gates, statistics, args)
    parameters_before = _count(model)
    units = {name: gate.size for name, gate in gates_of(model).items()}
    kept = {name: index for plan in plans[:1] for name, index in plan.kept.items()} | _gate_slices(model, gates)
    parameters = dict(model.named_parameters())
    for optimizer in optimizers:
        _slice_state(optimizer, parameters, kept)
    for one, plan in zip(models, plans, strict=True):
        _settle_statistics(one, statistics)
        _apply(one, plan, gates)
    result = Shrinkage(
        {name: (len(index), units[name]) for name, index in gates.items()},
        parameters_before,
        _count(model),
        time.perf_counter() - begin,
    )
    return result, {name: torch.from_numpy(index) for name, index in gates.items()}


class Shrinker:
    """Called after each epoch of a Trainer; shrinks when enough gates are closed for good.

    A gate is closed for good when after each of the last `patience` epochs the evaluation rule closed it, in the model
    and in its average, and its chance to be open while training was below `threshold`. With the paper's clamp of
    log_alpha that chance is never below 4.7 %.

    Args:
        trainer: of a model with gated layers.
        patience: epochs, at least 1.
        threshold: P(z != 0).
        least_share: gates that can go before it is worth the time, as a share of those that there are.
    Raises:
        OptionError: a setting outside its range.
        UnsupportedModelError: gates that `attach` put in.
    """

    def __init__(
        self, trainer: Trainer, *, patience: int = 3, threshold: float = 0.1, least_share: float = 0.2
    ) -> None:
        if patience < 1 or not 0 < threshold <= 1 or not 0 <= least_share < 1:
            raise OptionError(
                "Shrinker: expected patience >= 1, 0 < threshold <= 1 and 0 <= least_share < 1; "
                f"found {patience}, {threshold} and {least_share}."
            )
        _refuse_attached(trainer.model)
        self.trainer, self.patience, self.threshold, self.least_share = trainer, patience, threshold, least_share
        self.epochs_closed = {
            name: torch.zeros(gate.size, dtype=torch.int64) for name, gate in gates_of(trainer.model).items()
        }
        # closed for good, but standing in for the constants of others that went
        self.standing_in = {
            name: torch.zeros_like(count, dtype=torch.bool) for name, count in self.epochs_closed.items()
        }
        self.history: list[Shrinkage] = []

    def __call__(self, record: EpochRecord | None = None) -> Shrinkage | None:
        """Count, and shrink where it is worth it; what was done, if anything."""
        closed = self._closed_for_good()
        going = sum(int((mask & ~self.standing_in[name]).sum()) for name, mask in closed.items())
        if going == 0 or going < self.least_share * sum(len(mask) for mask in closed.values()):
            return None
        trainer = self.trainer
        averages = [trainer.average.module] if isinstance(trainer.average, AveragedModel) else []
        result, kept = shrink(
            trainer.model, trainer.inputs[:2], closed, optimizers=[trainer.optimizer], averages=averages
        )
        for name, mask in closed.items():
            index = kept.get(name, torch.arange(len(mask)))
            self.epochs_closed[name] = self.epochs_closed[name][index]
            self.standing_in[name] = mask[index]
        trainer.watch.narrow(kept)
        self.history.append(result)
        return result

    @torch.no_grad()
    def _closed_for_good(self) -> dict[str, Tensor]:
        averaged = gates_of(self.trainer.evaluated_model)
        closed: dict[str, Tensor] = {}
        for name, gate in gates_of(self.trainer.model).items():
            is_closed = gate.closed() & averaged[name].closed() & (gate.probability_open() < self.threshold)
            is_closed = is_closed.cpu()
            self.epochs_closed[name] = torch.where(is_closed, self.epochs_closed[name] + 1, 0)
            closed[name] = self.epochs_closed[name] >= self.patience
        return closed


# --- planning ----------------------------------------------------------------------------------------------------


def _check(models: Sequence[nn.Module], closed: Mapping[str, Tensor]) -> None:
    _refuse_attached(models[0])
    for model in models:
        gates = gates_of(model)
        for name, mask in closed.items():
            if name not in gates or len(mask) != gates[name].size:
                raise OptionError(f"shrink: {name!r} names no gates, or not as many; the model has {', '.join(gates)}.")
            still_open = int((mask.to(gates[name].log_alpha.device) & ~gates[name].closed()).sum())
            if still_open:
                raise OptionError(f"shrink: {still_open} gates of {name} are to go, but are not closed.")


def _refuse_attached(model: nn.Module) -> None:
    if gates_in(model) is not None:
        raise UnsupportedModelError(
            "shrink: the gates were put in by attach, which scale weights of layers that know nothing of them. Freeze "
            "them, and fine-tune what converters.compact_module makes of the model."
        )


def _marked_copy(model: nn.Module, args: tuple[Any, ...], closed: Mapping[str, Tensor]) -> nn.Module:
    """Of plain layers, whose gates are 0 where they are to go and 1 anywhere else, however they stand now."""
    gates = gates_of(model)
    try:
        for name, gate in gates.items():
            setattr(gate, _MARK, closed.get(name, torch.zeros(gate.size, dtype=torch.bool)))
        return plain_copy(model, args, {}, lambda gate: (~getattr(gate, _MARK)).to(gate.log_alpha))
    finally:
        for gate in gates.values():
            delattr(gate, _MARK)


def _plan(plains: Sequence[nn.Module], args: tuple[Any, ...]) -> tuple[list[ModulePlan], dict[str, NDArray[Any]]]:
    """The same cuts for all models, each with its own numbers; and the running means that closed channels lead to."""
    graph = export_unoptimised(plains[0], args, {})
    statistics: dict[str, NDArray[Any]] = {}
    first = ModuleSolution(graph.clone(), plains[0], in_training=True)
    for name, constants in first.constant_inputs().items():
        statistics[name] = constants
    if statistics:
        for plain in plains:
            _settle_statistics(plain, statistics)
    keep: dict[ParameterAxis, NDArray[np.bool_]] = {}
    while True:
        solutions = [
            ModuleSolution(values_in(graph, _arrays(plain)), plain, keep, in_training=True) for plain in plains
        ]
        removable = [solution.removable for solution in solutions]
        keys = {key for masks in removable for key in masks}
        agreed = {key: np.logical_and.reduce([_mask_of(masks, key, plains[0]) for masks in removable]) for key in keys}
        if all(np.array_equal(_mask_of(masks, key, plains[0]), agreed[key]) for masks in removable for key in keys):
            return [solution.carry_out() for solution in solutions], statistics
        keep = {**keep, **{key: ~mask for key, mask in agreed.items()}}


def _mask_of(
    masks: Mapping[ParameterAxis, NDArray[np.bool_]], key: ParameterAxis, module: nn.Module
) -> NDArray[np.bool_]:
    if key in masks:
        return masks[key]
    return np.zeros(_arrays(module)[key[0]].shape[key[1]], bool)


def _to_cpu(leaf: Any) -> Any:
    return leaf.cpu() if isinstance(leaf, Tensor) else leaf


def _arrays(module: nn.Module) -> dict[str, NDArray[Any]]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in module.state_dict(keep_vars=True).items()}


def _gates_left(model: nn.Module, plan: ModulePlan) -> dict[str, Index]:
    """Which gates stay, for every vector that loses some: those whose rows or columns do."""
    left: dict[str, Index] = {}
    for name, axis in _gate_axes(model).items():
        kept = plan.kept.get(axis[0], {}).get(axis[1])
        if kept is not None:
            left[name] = kept
    return left


def _gate_axes(model: nn.Module) -> dict[str, ParameterAxis]:
    """By name of each gate vector the parameter axis of the plain copy that it multiplies."""
    axes: dict[str, ParameterAxis] = {}
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, GatedLinear | GatedConv2d)}
    for name in gates_of(model):
        layer = layers.get(name)
        if layer is None:
            axes[name] = (f"{name}.values" if name else "values", 0)
            continue
        is_grouped = isinstance(layer, GatedConv2d) and layer.groups > 1
        axes[name] = (f"{name}.weight" if name else "weight", 1 if layer.side == "input" and not is_grouped else 0)
    return axes


def _gate_slices(model: nn.Module, gates: Mapping[str, Index]) -> dict[str, dict[int, Index]]:
    names = {id(gate.log_alpha): name for name, gate in gates_of(model).items()}
    return {
        parameter: {0: gates[names[id(tensor)]]}
        for parameter, tensor in model.named_parameters()
        if id(tensor) in names and names[id(tensor)] in gates
    }


# --- carrying out ------------------------------------------------------------------------------------------------


def _try(
    model: nn.Module,
    plan: ModulePlan,
    gates: Mapping[str, Index],
    statistics: Mapping[str, NDArray[Any]],
    args: tuple[Any, ...],
) -> None:
    """Shrink a copy, and run it beside another."""
    whole, narrow = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    for one in (whole, narrow):
        _settle_statistics(one, statistics)
    try:
        _apply(narrow, plan, gates)
        difference = largest_difference(whole, narrow, args)
    except Exception as error:  # the forward is the user's own and may fail in any way on other widths
        raise UnsupportedModelError(
            f"shrink: {type(model).__name__} does not run on fewer units ({type(error).__name__}: "
            f"{first_line(error)}). Let its forward read the widths off the tensors (x.flatten(1) for x.view(-1, 800))."
        ) from error
    if not difference <= _TOLERANCE:
        raise VerificationError(
            f"shrink: the narrower {type(model).__name__} gives outputs that differ by {difference:.1e} of their "
            f"scale, more than {_TOLERANCE:.0e}; the model stays as it was."
        )


@torch.no_grad()
def _apply(model: nn.Module, plan: ModulePlan, gates: Mapping[str, Index]) -> None:
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    tensors: dict[str, Tensor] = {}
    for name, array in plan.tensors.items():
        if name in plan.edited:
            tensors[name] = torch.from_numpy(array.copy())
        elif name in own:  # a lone gate's values are no tensor of the model
            tensors[name] = _slice(own[name], plan.kept[name])
    for name, index in _gate_slices(model, gates).items():
        tensors[name] = _slice(own[name], index)
    resize(model, tensors, plan.groups)
    for child in model.modules():
        if isinstance(child, Gate):
            child.size = len(child.log_alpha)


def _slice(whole: Tensor, kept: Mapping[int, Index]) -> Tensor:
    tensor = whole.detach()
    for dim, index in kept.items():
        tensor = tensor.index_select(dim, torch.from_numpy(index).to(tensor.device))
    return laid_out_like(tensor, whole).clone()


@torch.no_grad()
def _settle_statistics(model: nn.Module, statistics: Mapping[str, NDArray[Any]]) -> None:
    buffers = dict(model.named_buffers())
    for name, constants in statistics.items():
        known = torch.from_numpy(~np.isnan(constants))
        mean = buffers[name]
        known = known.to(mean.device)
        mean[known] = torch.from_numpy(constants).to(mean)[known]
        variance = buffers.get(name.replace("running_mean", "running_var"))
        if variance is not None:
            variance[known] = 0


def _slice_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], kept: Mapping[str, Mapping[int, Index]]
) -> None:
    for name, parameter in parameters.items():
        state = optimizer.state.get(parameter)
        if not state or name not in kept:
            continue
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = _slice(value, kept[name])


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
