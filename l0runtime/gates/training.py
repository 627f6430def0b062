"""How is a gated network trained, short enough to read in one sitting?

The data is one tensor, indexed batch by batch (a DataLoader costs more than a small network's step). Each step adds the
penalty to the loss, clamps the gates and updates a moving average of the parameters; the average is what is evaluated
and kept. A snapshot holds everything that the next step depends on, so a resumed run ends as an uninterrupted one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from l0runtime.errors import ModelFileError, OptionError
from l0runtime.gates.attached import gates_in
from l0runtime.gates.parameters import param_groups
from l0runtime.gates.penalty import PaperPenalty, expected_l0, gates_of, kept_units
from l0runtime.gates.progress import Progress
from l0runtime.gates.records import EpochRecord
from l0runtime.gates.resizing import shrink_to_fit
from l0runtime.gates.targets import TargetCost
from l0runtime.gates.watch import GateWatch

_SNAPSHOT_VERSION = 1
_SNAPSHOT_KEYS = ("options", "epoch", "model", "average", "optimizer", "random", "records")


@dataclass(frozen=True)
class TrainingOptions:
    """Settings of a run; the defaults are the paper's for MNIST.

    Args:
        epochs: passes over the training data.
        batch_size: examples per step; the last, smaller batch of an epoch is used too.
        learning_rate: step size of the weights.
        gate_learning_rate: step size of log_alpha, None for the same as the weights'.
        optimizer: "adam", or "sgd" with Nesterov momentum 0.9.
        average_decay: decay of the parameters' moving average per step; 0 keeps no average.
        weight_decay: of the optimizer, on the weights alone, never on gates.
        settle: share of the epochs, at the end, in which the gates are fixed at the target of a TargetCost and only
            the weights are fine-tuned; without meaning for other objectives.
        precision: "bfloat16" runs the forward pass under torch.autocast; parameters and gates stay float32.
        compile: pass the model through torch.compile.
        seed: seeds torch's global generator, which draws the order of the examples and the gates' noise.
    """

    epochs: int = 200
    batch_size: int = 100
    learning_rate: float = 1e-3
    gate_learning_rate: float | None = None
    optimizer: Literal["adam", "sgd"] = "adam"
    average_decay: float = 0.999
    weight_decay: float = 0.0
    settle: float = 0.2
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    seed: int = 0


class Trainer:
    """Trains a gated classifier on tensors in memory.

    Args:
        model: the network; it is trained in place.
        inputs, labels: training data, float [N, ...] and int64 [N].
        penalty: called without arguments once a step, gives a scalar to be added to the mean cross entropy. A
            TargetCost is also settled, see TrainingOptions, and kept in snapshots.
        options: see TrainingOptions.
    Raises:
        OptionError: inputs and labels of different length, or an option outside its range.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        penalty: Callable[[], Tensor],
        options: TrainingOptions | None = None,
    ) -> None:
        options = options or TrainingOptions()
        if len(inputs) != len(labels) or len(inputs) == 0:
            raise OptionError(
                f"Trainer: {len(inputs)} inputs and {len(labels)} labels; expected as many, at least one."
            )
        if options.epochs < 1 or options.batch_size < 1 or not 0 <= options.average_decay < 1:
            raise OptionError(
                "Trainer: expected epochs >= 1, batch_size >= 1 and 0 <= average_decay < 1; "
                f"found {options.epochs}, {options.batch_size} and {options.average_decay}."
            )
        self.model, self.inputs, self.labels, self.penalty, self.options = model, inputs, labels, penalty, options
        self.gates = list(gates_of(model).values())
        self.whole_shapes = _shapes_of(model)  # before any gate was removed
        self.optimizer = _build_optimizer(model, options)
        self.average: AveragedModel | None = None
        self._restart_average()
        self.watch = GateWatch(model, options.epochs * -(-len(inputs) // options.batch_size))
        self.compiled: Callable[[Tensor], Tensor] = torch.compile(model) if options.compile else model
        self.epoch = 0
        self.records: list[EpochRecord] = []
        self.steps_per_epoch = -(-len(inputs) // options.batch_size)
        torch.manual_seed(options.seed)

    @property
    def evaluated_model(self) -> nn.Module:
        """The network whose figures count: the moving average, or the model itself without one."""
        return self.model if self.average is None else self.average.module

    def _restart_average(self) -> None:
        if self.options.average_decay > 0:
            self.average = AveragedModel(
                self.model,
                multi_avg_fn=get_ema_multi_avg_fn(self.options.average_decay),  # type: ignore[no-untyped-call]
            )

    def _settle(self) -> None:
        """Fix the gates at the target when its epoch has come; the average begins anew, as the network is another."""
        first = self.options.epochs - round(self.options.settle * self.options.epochs)
        if isinstance(self.penalty, TargetCost) and self.options.settle > 0 and self.epoch == first:
            self.penalty.settle()
            self._restart_average()

    def run_epoch(self, progress: Progress | None = None) -> EpochRecord:
        """Train for one pass over the data and return its record (without a test error)."""
        begin = time.perf_counter()
        self._settle()
        self.model.train()
        loss_sum = torch.zeros((), device=self.labels.device)
        penalty_sum = torch.zeros_like(loss_sum)
        for step, (x, y) in enumerate(self._batches()):
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.options.precision == "bfloat16"):
                logits = self.compiled(x)
            loss = F.cross_entropy(logits.float(), y)
            penalty = self.penalty()
            self.optimizer.zero_grad(set_to_none=True)
            (loss + penalty).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            for gate in self.gates:
                gate.clamp_()
            if self.average is not None:
                self.average.update_parameters(self.model)
            loss_sum += loss.detach() * len(y)
            penalty_sum += penalty.detach() * len(y)
            if progress is not None:
                done = self.epoch * self.steps_per_epoch + step + 1
                progress(done, self.options.epochs * self.steps_per_epoch, f"epoch {self.epoch + 1}")
        self.epoch += 1
        self.watch.warn(self.epoch * self.steps_per_epoch)
        expected_cost, kept_cost = self._costs()
        record = EpochRecord(
            epoch=self.epoch,
            seconds=time.perf_counter() - begin,
            loss=float(loss_sum) / len(self.labels),
            penalty=float(penalty_sum) / len(self.labels),
            expected_l0=expected_l0(self.evaluated_model),
            kept="-".join(str(kept) for kept, _ in kept_units(self.evaluated_model).values()),
            test_error=None,
            expected_cost=expected_cost,
            kept_cost=kept_cost,
        )
        self.records.append(record)
        return record

    @torch.no_grad()
    def _costs(self) -> tuple[float | None, float | None]:
        """Expected and kept cost of the evaluated model; see EpochRecord."""
        gates = gates_in(self.evaluated_model)
        if gates is None:
            return None, None
        cost = self.penalty.cost if isinstance(self.penalty, TargetCost) else gates.costs.get("macs")
        if cost is None:
            return None, None
        return float(cost.fraction(gates.shares())), float(cost.fraction(gates.kept_shares()))

    def run(self, progress: Progress | None = None, after_epoch: Callable[[EpochRecord], None] | None = None) -> None:
        """Train until `options.epochs` are done; `after_epoch` may evaluate, log, save, or remove gates (Shrinker)."""
        while self.epoch < self.options.epochs:
            record = self.run_epoch(progress)
            if after_epoch is not None:
                after_epoch(record)

    def evaluate(self, inputs: Tensor, labels: Tensor) -> float:
        """Error of the evaluated model on other data, a fraction; noted in the last epoch's record."""
        error = error_rate(self.evaluated_model, inputs, labels)
        if self.records:
            self.records[-1] = replace(self.records[-1], test_error=error)
        return error

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.split(torch.randperm(len(self.labels)), self.options.batch_size):
            yield self.inputs[index], self.labels[index]

    def save_snapshot(self, path: str | os.PathLike[str]) -> None:
        """Write everything that resuming needs: model, optimizer, average, random state, records; atomically."""
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        state = {
            "version": _SNAPSHOT_VERSION,
            "options": asdict(self.options),
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "whole_shapes": self.whole_shapes,
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "penalty": self.penalty.state_dict() if isinstance(self.penalty, TargetCost | PaperPenalty) else None,
            "watch": self.watch.start,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "records": [asdict(record) for record in self.records],
        }
        try:
            torch.save(state, temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def load_snapshot(self, path: str | os.PathLike[str]) -> None:
        """Continue a run where `save_snapshot` left it; the options must be the same, but for more epochs.

        Raises:
            ModelFileError: the file is missing, no snapshot, or from a newer version.
            OptionError: it belongs to a run with other options.
        """
        try:
            state = torch.load(path, weights_only=True)
        except FileNotFoundError as error:
            raise ModelFileError(f"{path}: no such file; expected a training snapshot.") from error
        except Exception as error:  # torch.load fails in many ways on a damaged file
            raise ModelFileError(f"{path}: not a readable training snapshot ({type(error).__name__}).") from error
        if not isinstance(state, dict) or not isinstance(state.get("version"), int):
            raise ModelFileError(f"{path}: not a training snapshot; it has no version.")
        if state["version"] > _SNAPSHOT_VERSION:
            raise ModelFileError(
                f"{path}: a snapshot of format {state['version']}, this version reads up to {_SNAPSHOT_VERSION}; "
                "upgrade l0runtime."
            )
        lacking = [name for name in _SNAPSHOT_KEYS if name not in state]
        if lacking:
            more = f"{', '.join(lacking[:5])} and more" if len(lacking) > 5 else ", ".join(lacking)
            raise ModelFileError(f"{path}: not a training snapshot; it lacks {more}.")
        for field in fields(TrainingOptions):
            found, expected = state["options"].get(field.name, field.default), getattr(self.options, field.name)
            if found != expected and field.name != "epochs":
                raise OptionError(f"{path}: the run had {field.name}={found}, now it is {expected}; keep it to resume.")
        try:
            is_same_network = state.get("whole_shapes") == self.whole_shapes
            if is_same_network:
                shrink_to_fit(self.model, state["model"])  # a run that removed closed gates goes on without them
            self.model.load_state_dict(state["model"])
            if self.average is not None:
                if is_same_network:
                    shrink_to_fit(self.average, state["average"])
                self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            if isinstance(self.penalty, TargetCost | PaperPenalty) and state.get("penalty") is not None:
                self.penalty.load_state_dict(state["penalty"])
        except (RuntimeError, ValueError, KeyError, ModelFileError) as error:
            raise ModelFileError(f"{path}: the snapshot is of another network: {error}") from error
        self.watch.start = state.get("watch", self.watch.start)
        self.epoch = state["epoch"]
        self.records = [EpochRecord(**record) for record in state["records"]]
        torch.set_rng_state(state["random"])
        if torch.cuda.is_available() and state.get("random_cuda"):
            torch.cuda.set_rng_state_all(state["random_cuda"])


@torch.no_grad()
def error_rate(model: nn.Module, inputs: Tensor, labels: Tensor, batch_size: int = 1000) -> float:
    """Fraction of examples that the model in eval() mode classifies wrongly; leaves its mode as it was."""
    was_training = model.training
    model.eval()
    wrong = 0
    for x, y in zip(torch.split(inputs, batch_size), torch.split(labels, batch_size), strict=True):
        wrong += int(torch.count_nonzero(model(x).argmax(1) != y))
    model.train(was_training)
    return wrong / len(labels)


def _shapes_of(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(parameter.shape) for name, parameter in model.named_parameters()}


def _build_optimizer(model: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    groups = param_groups(model, options.learning_rate, options.gate_learning_rate, options.weight_decay)
    if options.optimizer == "adam":
        return torch.optim.Adam(groups, fused=True)
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, fused=True)
    raise OptionError(f"Trainer: optimizer is {options.optimizer!r}; expected 'adam' or 'sgd'.")
