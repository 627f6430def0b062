"""Does the trainer optimise what it says, average as it says, and resume to the very same weights?"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gates.attachable import resnet
from l0runtime.errors import ModelFileError, OptionError
from l0runtime.gates import (
    GateSpec,
    LeNet300,
    PaperPenalty,
    TargetCost,
    Trainer,
    TrainingOptions,
    attach,
    error_rate,
    gates_in,
)

# a run of a few steps leaves its gates undecided, and says so
pytestmark = pytest.mark.filterwarnings("ignore::l0runtime.gates.GateWarning")

OPTIONS = TrainingOptions(epochs=4, batch_size=16, average_decay=0.9, seed=3)


def make_data() -> tuple[Tensor, Tensor]:
    """50 points of two classes that the sign of their first coordinate tells apart, in batches of 16, 16, 16 and 2."""
    inputs = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    return inputs, (inputs[:, 0] > 0).long()


def make_trainer(options: TrainingOptions = OPTIONS, strength: float = 0.01) -> Trainer:
    torch.manual_seed(11)
    model = LeNet300(inputs=6, hidden=(8, 5), classes=2)
    inputs, labels = make_data()
    return Trainer(model, inputs, labels, PaperPenalty(model, [strength], len(labels)), options)


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    for (name, left), (_, right) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.equal(left, right), name


def test_a_step_is_adams_on_the_loss_plus_the_penalty() -> None:
    """One batch of everything, against torch's plain Adam on a twin; the average of one step is the step itself."""
    trainer = make_trainer(replace(OPTIONS, epochs=1, batch_size=50, gate_learning_rate=0.1), strength=1.0)
    twin = copy.deepcopy(trainer.model).train()
    penalty = PaperPenalty(twin, [1.0], 50)
    inputs, labels = make_data()
    state = torch.get_rng_state()
    record = trainer.run_epoch()
    torch.set_rng_state(state)
    order = torch.randperm(50)
    loss = F.cross_entropy(twin(inputs[order]), labels[order])
    (loss + penalty()).backward()
    gates = [p for name, p in twin.named_parameters() if "log_alpha" in name]
    weights = [p for name, p in twin.named_parameters() if "log_alpha" not in name]
    torch.optim.Adam([{"params": weights, "lr": 1e-3}, {"params": gates, "lr": 0.1}]).step()
    assert record.loss == pytest.approx(loss.item(), rel=1e-6)
    for (name, found), (_, expected) in zip(trainer.model.named_parameters(), twin.named_parameters(), strict=True):
        # the fused and the plain implementation round differently
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7, msg=name)
    assert_same_state(trainer.evaluated_model, trainer.model)


def test_training_learns_the_task_and_closes_gates_of_useless_inputs() -> None:
    options = replace(OPTIONS, epochs=150, learning_rate=1e-2, gate_learning_rate=5e-2)
    trainer = make_trainer(options, strength=0.05)
    trainer.run()
    inputs, labels = make_data()
    assert trainer.evaluate(inputs, labels) <= 0.04
    closed = trainer.evaluated_model.layers[1].gate.closed()
    assert not closed[0]
    assert closed[1:].sum() >= 4
    assert trainer.records[-1].loss < trainer.records[0].loss
    assert trainer.records[-1].expected_l0 < trainer.records[0].expected_l0


def test_the_average_is_exponential_and_starts_at_the_first_step() -> None:
    trainer = make_trainer(replace(OPTIONS, epochs=1))
    weight = trainer.model.layers[1].weight
    history: list[Tensor] = []
    trainer.run(progress=lambda done, total, note: history.append(weight.detach().clone()))
    expected = history[0]
    for value in history[1:]:
        expected = 0.9 * expected + 0.1 * value
    assert len(history) == 4
    torch.testing.assert_close(trainer.evaluated_model.layers[1].weight.detach(), expected)


def test_without_average_the_model_itself_is_evaluated() -> None:
    trainer = make_trainer(replace(OPTIONS, average_decay=0.0))
    trainer.run_epoch()
    assert trainer.evaluated_model is trainer.model


def test_gates_are_clamped_after_each_step() -> None:
    trainer = make_trainer(replace(OPTIONS, epochs=1, gate_learning_rate=100.0))
    trainer.run()
    for gate in trainer.gates:
        assert gate.log_alpha.abs().max().item() == pytest.approx(4.60517, abs=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_resumed_run_ends_with_the_very_same_weights(optimizer: str, tmp_path: Path) -> None:
    options = replace(OPTIONS, optimizer=optimizer)  # type: ignore[arg-type]
    whole = make_trainer(options)
    whole.run()
    first = make_trainer(options)
    first.run_epoch()
    first.run_epoch()
    first.save_snapshot(tmp_path / "snapshot.pt")
    torch.rand(100)  # whatever else draws random numbers in between
    second = make_trainer(options)
    second.load_snapshot(tmp_path / "snapshot.pt")
    assert second.epoch == 2
    second.run()
    assert_same_state(second.model, whole.model)
    assert_same_state(second.evaluated_model, whole.evaluated_model)
    without_time = [[replace(r, seconds=0) for r in run.records] for run in (second, whole)]
    assert without_time[0] == without_time[1]


def make_target_trainer(options: TrainingOptions) -> Trainer:
    """Of a small residual network with attached gates, on 40 random images of three classes."""
    model, inputs = resnet()
    torch.manual_seed(11)  # the gates begin at random
    attach(model, GateSpec(kinds=("units", "stream")), inputs)
    generator = torch.Generator().manual_seed(4)
    images, labels = torch.randn(40, 2, 6, 6, generator=generator), torch.randint(0, 3, (40,), generator=generator)
    steps = options.epochs * -(-len(labels) // options.batch_size)
    return Trainer(model, images, labels, TargetCost(model, 0.5, steps), options)


@pytest.mark.parametrize("interrupted_after", [2, 8, 9], ids=["before", "just before", "after settling"])
def test_a_run_to_a_target_resumes_exactly_before_and_after_its_gates_are_settled(
    interrupted_after: int, tmp_path: Path
) -> None:
    options = TrainingOptions(epochs=10, batch_size=8, gate_learning_rate=0.2, average_decay=0.9)
    whole = make_target_trainer(options)
    whole.run()
    first = make_target_trainer(options)
    for _ in range(interrupted_after):
        first.run_epoch()
    first.save_snapshot(tmp_path / "s")
    second = make_target_trainer(options)
    second.load_snapshot(tmp_path / "s")
    second.run()
    assert_same_state(second.model, whole.model)
    assert_same_state(second.evaluated_model, whole.evaluated_model)
    assert [r.kept for r in second.records] == [r.kept for r in whole.records]
    kept = whole.records[-1].kept_cost
    assert kept is not None
    assert kept <= 0.5


def test_the_costs_on_record_are_those_of_the_target() -> None:
    trainer = make_target_trainer(TrainingOptions(epochs=1, batch_size=8))
    assert isinstance(trainer.penalty, TargetCost)
    gates = gates_in(trainer.model)
    assert gates is not None
    trainer.penalty.cost = gates.costs["parameters"]
    record = trainer.run_epoch()
    evaluated = gates_in(trainer.evaluated_model)
    assert evaluated is not None
    expected = gates.costs["parameters"].fraction(evaluated.shares()).detach()
    assert record.expected_cost == pytest.approx(float(expected))
    assert record.kept_cost == 1.0


def test_automatic_mixed_precision_keeps_parameters_and_gates_in_float32() -> None:
    options = TrainingOptions(epochs=2, batch_size=8, gate_learning_rate=0.1)
    plain, mixed = make_target_trainer(options), make_target_trainer(replace(options, precision="bfloat16"))
    for trainer in (plain, mixed):
        trainer.run()
    assert all(parameter.dtype == torch.float32 for parameter in mixed.model.parameters())
    # bfloat16 has 8 bits of mantissa: close to the plain run, and not the very same
    assert mixed.records[0].loss == pytest.approx(plain.records[0].loss, rel=0.05)
    assert mixed.records[0].loss != plain.records[0].loss


def test_a_run_can_be_prolonged(tmp_path: Path) -> None:
    short = make_trainer(replace(OPTIONS, epochs=1))
    short.run()
    short.save_snapshot(tmp_path / "s")
    longer = make_trainer(replace(OPTIONS, epochs=2))
    longer.load_snapshot(tmp_path / "s")
    longer.run()
    assert [record.epoch for record in longer.records] == [1, 2]


def test_a_snapshot_of_other_options_is_refused(tmp_path: Path) -> None:
    make_trainer().save_snapshot(tmp_path / "s")
    with pytest.raises(OptionError) as caught:
        make_trainer(replace(OPTIONS, batch_size=8)).load_snapshot(tmp_path / "s")
    assert str(caught.value) == f"{tmp_path / 's'}: the run had batch_size=16, now it is 8; keep it to resume."


def test_a_missing_snapshot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError) as caught:
        make_trainer().load_snapshot(tmp_path / "s")
    assert str(caught.value) == f"{tmp_path / 's'}: no such file; expected a training snapshot."


def test_a_truncated_snapshot_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    make_trainer().save_snapshot(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelFileError, match=r"s: not a readable training snapshot \(\w+\)\.$"):
        make_trainer().load_snapshot(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": 1}, "not a training snapshot; it has no version."),
        ([1], "not a training snapshot; it has no version."),
        ({"version": 2}, "a snapshot of format 2, this version reads up to 1; upgrade l0runtime."),
        ({"version": 1}, "not a training snapshot; it lacks options, epoch, model, average, optimizer and more."),
    ],
)
def test_a_file_that_is_no_snapshot_is_refused(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "s")
    with pytest.raises(ModelFileError) as caught:
        make_trainer().load_snapshot(tmp_path / "s")
    assert str(caught.value) == f"{tmp_path / 's'}: {message}"


def test_a_snapshot_of_another_network_is_refused(tmp_path: Path) -> None:
    make_trainer().save_snapshot(tmp_path / "s")
    model = LeNet300(inputs=6, hidden=(9, 5), classes=2)
    other = Trainer(model, *make_data(), PaperPenalty(model, [0.1], 50), OPTIONS)
    with pytest.raises(ModelFileError, match=r"s: the snapshot is of another network: "):
        other.load_snapshot(tmp_path / "s")


def test_error_rate_counts_wrong_examples_in_eval_mode() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.Identity()).train()
    outputs = torch.eye(4)
    assert error_rate(model, outputs, torch.tensor([0, 1, 2, 0]), batch_size=3) == 0.25
    assert model.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"epochs": 0},
            "Trainer: expected epochs >= 1, batch_size >= 1 and 0 <= average_decay < 1; found 0, 16 and 0.9.",
        ),
        (
            {"average_decay": 1.0},
            "Trainer: expected epochs >= 1, batch_size >= 1 and 0 <= average_decay < 1; found 4, 16 and 1.0.",
        ),
        ({"optimizer": "lion"}, "Trainer: optimizer is 'lion'; expected 'adam' or 'sgd'."),
    ],
)
def test_options_without_meaning_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        make_trainer(replace(OPTIONS, **change))  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_inputs_without_their_labels_are_refused() -> None:
    model = LeNet300(inputs=6, hidden=(8, 5), classes=2)
    with pytest.raises(OptionError) as caught:
        Trainer(model, torch.zeros(3, 6), torch.zeros(2).long(), PaperPenalty(model, [0.1], 3))
    assert str(caught.value) == "Trainer: 3 inputs and 2 labels; expected as many, at least one."
