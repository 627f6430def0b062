"""Shrinking while training: the run goes on as it would have with the closed gates held shut, only narrower."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from converters import Shrinker, shrink
from l0runtime.errors import OptionError, UnsupportedModelError
from l0runtime.gates import (
    Gate,
    GatedConv2d,
    GatedLinear,
    HardConcrete,
    PaperPenalty,
    Trainer,
    TrainingOptions,
    WideResNet,
    attach,
    gates_of,
    load,
    save,
)

CLOSED, OPEN = -4.0, 1.0


@pytest.fixture(autouse=True)
def _still_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """u = 1/2 for every gate, so that a run with fewer gates draws the same; closed ones are then exactly 0."""

    def draw_noise(self: HardConcrete, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return torch.zeros(shape)

    monkeypatch.setattr(HardConcrete, "draw_noise", draw_noise)


def small_lenet() -> nn.Module:
    """Input [batch, 1, 12, 12]: gates on filters, and on inputs of linear layers, as in the paper's network."""
    return nn.Sequential(
        GatedConv2d(1, 6, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        GatedConv2d(6, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        GatedLinear(72, 20),
        nn.ReLU(),
        GatedLinear(20, 5),
    )


@torch.no_grad()
def close(model: nn.Module, share: float = 0.5) -> dict[str, Tensor]:
    """Close a share of every gate vector; gives the masks."""
    generator = torch.Generator().manual_seed(1)
    closed = {}
    for name, gate in gates_of(model).items():
        mask = torch.rand(gate.size, generator=generator) < share
        gate.log_alpha.copy_(torch.where(mask, CLOSED, OPEN + 0.1 * torch.randn(gate.size, generator=generator)))
        closed[name] = mask
    return closed


def data(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(60, *shape, generator=generator)
    return inputs, torch.randint(0, 5, (60,), generator=generator)


def trainer_of(model: nn.Module, optimizer: str, epochs: int = 4) -> Trainer:
    inputs, labels = data(1, 12, 12)
    options = TrainingOptions(
        epochs=epochs,
        batch_size=10,
        learning_rate=0.02,
        optimizer=optimizer,
        average_decay=0.9,
        gate_learning_rate=1e-4,
    )
    return Trainer(model, inputs, labels, PaperPenalty(model, [0.1], 60, weight_decay=1e-3), options)


@pytest.mark.filterwarnings("ignore::l0runtime.gates.GateWarning")
@pytest.mark.parametrize(
    ("optimizer", "layout"),
    [("sgd", torch.contiguous_format), ("adam", torch.contiguous_format), ("adam", torch.channels_last)],
)
def test_the_losses_are_those_of_a_run_without_shrinking(optimizer: str, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    whole = small_lenet().to(memory_format=layout)
    close(whole)
    narrow = copy.deepcopy(whole)
    plain, shrunk = trainer_of(whole, optimizer), trainer_of(narrow, optimizer)
    shrinker = Shrinker(shrunk, patience=1)
    for epoch in range(4):
        torch.manual_seed(epoch)  # the order of the examples
        expected = plain.run_epoch()
        torch.manual_seed(epoch)
        found = shrunk.run_epoch()
        # relative, float32: sums of fewer terms in another order, through up to 24 steps
        assert found.loss == pytest.approx(expected.loss, rel=2e-5)
        assert found.kept.split("-")[0] == expected.kept.split("-")[0]
        if epoch == 0:
            assert shrinker(found) is not None
    x = data(1, 12, 12)[0]
    assert narrow[0].out_channels < 6
    assert narrow[3].weight.is_contiguous(memory_format=layout)
    for parameter, state in shrunk.optimizer.state.items():
        assert all(t.stride() == parameter.stride() for t in state.values() if torch.is_tensor(t) and t.dim())
    for one, other in ((whole, narrow), (plain.evaluated_model, shrunk.evaluated_model)):
        torch.testing.assert_close(other.eval()(x), one.eval()(x), rtol=0, atol=2e-4)


def test_the_function_of_model_and_average_stays_and_gates_and_state_are_sliced() -> None:
    model = small_lenet()
    closed = close(model)
    trainer = trainer_of(model, "adam")
    trainer.run_epoch()
    average = trainer.average.module
    x = data(1, 12, 12)[0]
    before = [m.eval()(x).detach() for m in (model, average)]
    result, kept = shrink(model, x[:2], closed, optimizers=[trainer.optimizer], averages=[average])
    for m, expected in zip((model, average), before, strict=True):
        torch.testing.assert_close(m.eval()(x), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert {name: len(index) for name, index in kept.items()} == {
        name: gate.size for name, gate in gates_of(model).items()
    }
    assert result.parameters_after < result.parameters_before
    assert model[3].in_channels == model[0].out_channels == gates_of(model)["0"].size
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            assert trainer.optimizer.state[parameter]["exp_avg"].shape == parameter.shape
    trainer.run_epoch()  # the next step fits


def test_constants_behind_batch_norm_and_padding_stay_in_one_closed_channel() -> None:
    torch.manual_seed(0)
    model = WideResNet(10, 1, classes=5)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.bias)
    closed = close(model)
    x = torch.randn(8, 3, 8, 8)
    for _ in range(100):  # until the statistics of the closed channels are those of zeros
        model.train()(x)
    before_training, before = model.train()(x).detach(), model.eval()(x).detach()
    _, kept = shrink(model, x[:2], closed)
    block = model.blocks[0]
    stays = kept["blocks.0.conv1"]
    assert int(closed["blocks.0.conv1"][stays].sum()) == 1  # one closed channel, for the constants of all
    assert block.conv1.gate.size == block.bn2.num_features == block.conv2.in_channels == len(stays)
    torch.testing.assert_close(model.eval()(x), before, rtol=0, atol=1e-4 * float(before.abs().max()))
    found = model.train()(x)
    torch.testing.assert_close(found, before_training, rtol=0, atol=1e-4 * float(before_training.abs().max()))


def test_gates_that_are_closed_by_the_rule_alone_stay() -> None:
    model = small_lenet()
    closed = close(model)
    with torch.no_grad():
        gates_of(model)["3"].log_alpha.fill_(-2.5)  # closed, but open in 3 of 10 samples while training
    closed["3"] = torch.zeros(8, dtype=torch.bool)
    x = data(1, 12, 12)[0]
    shrink(model, x[:2], closed)
    # a filter is gone only where all nine of its inputs to the linear layer are
    whole = closed["6"].reshape(8, 9).all(1)
    assert model[3].out_channels == 8 - int(whole.sum())


def test_an_open_gate_is_refused_and_the_model_stays() -> None:
    model = small_lenet()
    closed = {"0": torch.ones(6, dtype=torch.bool)}
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(OptionError) as caught:
        shrink(model, torch.randn(2, 1, 12, 12), closed)
    assert str(caught.value) == "shrink: 6 gates of 0 are to go, but are not closed."
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class HardCoded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = GatedConv2d(1, 4, 3), nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)).view(-1, 144))


def test_a_forward_with_fixed_widths_is_refused_and_the_model_stays() -> None:
    model = HardCoded()
    closed = close(model)
    before = {name: tensor.shape for name, tensor in model.state_dict().items()}
    with pytest.raises(UnsupportedModelError, match="does not run on fewer units") as caught:
        shrink(model, torch.randn(2, 1, 8, 8), closed)
    assert "x.flatten(1) for x.view(-1, 800)" in str(caught.value)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == before


def test_attached_gates_are_refused_with_the_way_out() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    attach(model, "auto", torch.randn(2, 6))
    with pytest.raises(UnsupportedModelError, match=r"fine-tune what converters\.compact_module makes of the model"):
        shrink(model, torch.randn(2, 6), {})


def narrow_to(model: nn.Module) -> nn.Module:
    x = torch.randn(2, 3, 8, 8)
    shrink(model, x, close(model))
    return model.eval()


def test_a_narrowed_network_survives_saving_and_loading(tmp_path: Path) -> None:
    model = narrow_to(WideResNet(10, 1, classes=5))
    save(model, tmp_path / "narrow.safetensors")
    found = load(tmp_path / "narrow.safetensors")
    x = torch.randn(2, 3, 8, 8)
    assert isinstance(found.blocks[0].conv1.gate, Gate)
    assert found.blocks[0].conv1.gate.size == model.blocks[0].conv1.gate.size
    torch.testing.assert_close(found(x), model(x))


@pytest.mark.filterwarnings("ignore::l0runtime.gates.GateWarning")
def test_a_snapshot_of_a_narrowed_run_is_resumed_by_a_trainer_of_the_whole_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = small_lenet()
    close(whole)
    resumed_model = copy.deepcopy(whole)
    first = trainer_of(whole, "adam")
    first.run_epoch()
    Shrinker(first, patience=1)()
    first.run_epoch()
    first.save_snapshot(tmp_path / "run.pt")
    expected = first.run_epoch().loss
    resumed = trainer_of(resumed_model, "adam")
    resumed.load_snapshot(tmp_path / "run.pt")
    assert resumed.run_epoch().loss == expected


def test_shrinking_waits_for_patience_and_for_enough_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_lenet()
    close(model)
    shrinker = Shrinker(trainer_of(model, "adam"), patience=2)
    assert shrinker() is None
    assert shrinker() is not None
    assert shrinker() is None  # nothing more to take
    greedy: Callable[[], object] = Shrinker(trainer_of(small_lenet(), "adam"), patience=1)
    assert greedy() is None  # no gate is closed
