"""A smaller torch module: the same function, to train further; what its forward does not allow is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from converters import compact_module
from converters.plain_copy import FixedGate
from l0runtime.errors import InputError, NoGateError, UnsupportedModelError
from l0runtime.gates import Gate, GatedConv2d, GatedLinear, GateSpec, LeNet5, WideResNet, attach, save


@torch.no_grad()
def close_half(model: nn.Module) -> nn.Module:
    """Half of the gates closed, the others between 0 and 1."""
    generator = torch.Generator().manual_seed(3)
    for gate in model.modules():
        if isinstance(gate, Gate):
            half = torch.randperm(gate.size, generator=generator) < gate.size // 2
            gate.log_alpha.copy_(torch.where(half, -4.0, torch.rand(gate.size, generator=generator)))
    return model


@torch.no_grad()
def randomise_norms(model: nn.Module) -> nn.Module:
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                tensor.normal_()
            norm.running_var.uniform_(0.5, 2)
    return model


def assert_same(model: nn.Module, smaller: nn.Module, *shape: int) -> None:
    x = torch.randn(*shape)
    with torch.no_grad():
        expected, found = model.eval()(x), smaller(x)
    # float32: sums of up to 800 products in another order
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def fine_tune(module: nn.Module, *shape: int) -> float:
    """One step; by how much it moves the output."""
    module.train()
    x = torch.randn(*shape)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    before = module(x)
    before.square().mean().backward()
    optimizer.step()
    return float((module(x) - before).detach().abs().max())


def test_lenet_becomes_its_surviving_widths_and_trains_on() -> None:
    model = close_half(LeNet5((6, 8), 20))
    before = copy.deepcopy(model.state_dict())
    compacted = compact_module(model, torch.zeros(2, 1, 28, 28))
    module = compacted.module
    assert module.conv1.out_channels == model.conv1.gate.kept_count()
    assert module.fc2.in_features == model.fc2.gate.kept_count()
    assert type(module.conv1) is nn.Conv2d
    assert compacted.refused == ()
    assert compacted.parameters_after == sum(p.numel() for p in module.parameters()) < compacted.parameters_before
    assert_same(model, module, 3, 1, 28, 28)
    assert fine_tune(module, 2, 1, 28, 28) > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_constants_behind_batch_norm_and_padding_move_into_one_channel() -> None:
    model = randomise_norms(close_half(WideResNet(10, 1)))
    compacted = compact_module(model, torch.zeros(2, 3, 8, 8))
    block = compacted.module.blocks[0]
    kept = model.blocks[0].conv1.gate.kept_count()
    assert block.conv1.out_channels == block.bn2.num_features == block.conv2.in_channels == kept + 1
    assert_same(model, compacted.module, 2, 3, 8, 8)
    assert fine_tune(compacted.module, 4, 3, 8, 8) > 0


def test_constants_move_into_a_bias_that_did_not_exist() -> None:
    model = nn.Sequential(
        GatedConv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1, bias=False), nn.Flatten()
    )
    close_half(randomise_norms(model))
    compacted = compact_module(model, torch.zeros(2, 3, 6, 6))
    assert compacted.module[0].out_channels == model[0].gate.kept_count()
    assert compacted.module[3].bias is not None
    assert compacted.shapes["3.bias"] == ((), (4,))
    assert_same(model, compacted.module, 2, 3, 6, 6)


def test_a_linear_layer_over_tokens_gets_the_constants_into_its_bias() -> None:
    for bias in (True, False):
        model = nn.Sequential(
            nn.Linear(5, 8), nn.Sigmoid(), GatedLinear(8, 8, side="output", gate_bias=False), nn.Linear(8, 3, bias=bias)
        )
        nn.init.normal_(model[2].bias)
        close_half(model)
        compacted = compact_module(model, torch.zeros(2, 4, 5))
        assert compacted.module[3].in_features == model[2].gate.kept_count()
        assert_same(model, compacted.module, 2, 4, 5)


def test_depthwise_convolutions_lose_groups() -> None:
    model = nn.Sequential(
        GatedConv2d(3, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.Conv2d(8, 4, 1)
    )
    close_half(model)
    compacted = compact_module(model, torch.zeros(2, 3, 6, 6))
    depthwise = compacted.module[2]
    assert depthwise.groups == depthwise.in_channels == depthwise.out_channels == model[0].gate.kept_count()
    assert_same(model, compacted.module, 2, 3, 6, 6)


def test_attached_gates_are_multiplied_in() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    attach(randomise_norms(model).eval(), GateSpec(), torch.randn(2, 3, 8, 8))
    close_half(model)
    compacted = compact_module(model, torch.zeros(2, 3, 8, 8))
    assert compacted.module[0].out_channels < 8
    assert_same(model, compacted.module, 2, 3, 8, 8)
    assert fine_tune(compacted.module, 4, 3, 8, 8) > 0


def test_masks_of_torch_prune_are_multiplied_in() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    prune.ln_structured(model[0], "weight", 0.5, n=2, dim=0)
    with torch.no_grad():
        model[0].bias.zero_()
    model(torch.randn(2, 5))  # leaves a weight with a graph behind, which cannot be copied as it is
    compacted = compact_module(model, torch.zeros(2, 5))
    assert compacted.module[0].out_features == 4
    assert not prune.is_pruned(compacted.module)
    assert_same(model, compacted.module, 2, 5)


class OwnGate(nn.Module):
    """A gate of somebody's own code, computed in the forward."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.clamp(self.logits, 0, 1)


def test_a_gate_of_other_code_is_cut_with_the_layer_before_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), OwnGate(12), nn.ReLU(), nn.Linear(12, 3))
    compacted = compact_module(model, torch.zeros(2, 5))
    alive = int((model[1].logits > 0).sum())
    assert 0 < alive < 12
    assert compacted.module[0].out_features == len(compacted.module[1].logits) == alive
    assert_same(model, compacted.module, 2, 5)


def test_a_gate_that_stands_alone_becomes_its_values() -> None:
    model = nn.Sequential(nn.Linear(5, 8), Gate(8), nn.Linear(8, 3))
    compacted = compact_module(close_half(model), torch.zeros(2, 5))
    gate = compacted.module[1]
    assert isinstance(gate, FixedGate)
    assert len(gate.values) == model[1].kept_count()
    assert_same(model, compacted.module, 2, 5)


class HardCoded(nn.Module):
    """One width that the forward knows, one that it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.last = GatedConv2d(1, 4, 3), GatedLinear(144, 20), GatedLinear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(torch.relu(self.conv(x)).view(-1, 144))))


def test_a_width_that_the_forward_knows_is_refused_and_the_others_are_cut() -> None:
    model = close_half(HardCoded())
    compacted = compact_module(model, torch.zeros(2, 1, 8, 8))
    assert compacted.module.conv.out_channels == 4
    assert compacted.module.last.in_features == model.last.gate.kept_count()
    (refused,) = compacted.refused
    assert refused.parameters == "conv.bias, conv.weight, first.weight"
    assert refused.reason.startswith("its forward fails on fewer (RuntimeError: ")
    assert "refused: conv.bias, conv.weight, first.weight: its forward fails" in str(compacted)
    assert_same(model, compacted.module, 2, 1, 8, 8)


class ByNumber(nn.Module):
    """Reads two channels by their numbers: with fewer channels it would run, and be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.gated, self.last = GatedLinear(4, 6, side="output"), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.gated(x)
        return self.last(y) * y[:, 2:4]


def test_another_answer_is_found_by_running_and_refused() -> None:
    model = ByNumber()
    with torch.no_grad():
        model.gated.gate.log_alpha.copy_(torch.tensor([4.0, -4.0, 4.0, 4.0, 4.0, 4.0]))
    with pytest.raises(UnsupportedModelError) as caught:
        compact_module(model, torch.zeros(2, 4))
    assert str(caught.value).startswith(
        "ByNumber: its forward does not allow smaller widths (gated.bias, gated.weight, last.weight: "
    )


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), GatedLinear(16, 8)
        self.keys, self.values = nn.Linear(8, 12), GatedLinear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        heads = torch.relu(self.keys(y)).view(len(x), 3, 4).flatten(1)
        return self.down(torch.relu(self.up(y))) + self.values(heads)


def test_of_many_layers_those_are_refused_that_fail() -> None:
    model = close_half(Stack())
    with torch.no_grad():
        for block in model.blocks:
            block.values.gate.log_alpha[:4] = -4.0  # a whole head
    compacted = compact_module(model, torch.randn(2, 8))
    assert all(block.down.in_features < 16 for block in compacted.module.blocks)
    assert all(block.values.in_features == 12 for block in compacted.module.blocks)
    assert len(compacted.refused) == 3
    assert_same(model, compacted.module, 2, 8)


class Positions(nn.Module):
    """A table of positions that a short example does not read whole."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(40, 6))
        self.words, self.last = nn.Embedding(10, 6), GatedLinear(6, 3, side="output")
        self.head = nn.Linear(3, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.last(self.words(ids) + self.table[: ids.shape[1]]))


def test_a_table_that_the_example_reads_in_part_stays_whole() -> None:
    model = close_half(Positions())
    compacted = compact_module(model, torch.zeros(2, 5, dtype=torch.int64))
    assert compacted.module.table.shape == (40, 6)
    assert compacted.module.head.in_features == model.last.gate.kept_count()
    ids = torch.randint(0, 10, (3, 40))
    with torch.no_grad():
        torch.testing.assert_close(compacted.module(ids), model.eval()(ids))


def test_a_norm_over_dead_features_keeps_them_and_says_so() -> None:
    model = nn.Sequential(nn.Linear(4, 8), GatedLinear(8, 8, side="output"), nn.LayerNorm(8), nn.Linear(8, 2))
    with pytest.raises(UnsupportedModelError) as caught:
        compact_module(close_half(model), torch.zeros(2, 4))
    assert "nothing that is dead can be removed from the module" in str(caught.value)
    assert "LayerNorm" in str(caught.value)


def test_a_module_without_dead_units_is_refused() -> None:
    with pytest.raises(NoGateError) as caught:
        compact_module(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(2, 4))
    assert str(caught.value) == (
        "Sequential: no gate is closed and no channel is exactly zero, so nothing can be removed from the module."
    )


def test_wrong_inputs_are_refused() -> None:
    with pytest.raises(InputError, match="no example inputs"):
        compact_module(nn.Linear(4, 4))
    with pytest.raises(InputError, match="does not run on its example inputs"):
        compact_module(nn.Linear(4, 4), torch.zeros(2, 5))


def test_a_compacted_network_is_not_saved_under_the_header_of_the_whole_one(tmp_path: pytest.TempPathFactory) -> None:
    compacted = compact_module(close_half(LeNet5((6, 8), 20)), torch.zeros(2, 1, 28, 28))
    with pytest.raises(UnsupportedModelError, match="expected an attribute config"):
        save(compacted.module, f"{tmp_path}/small.safetensors")
