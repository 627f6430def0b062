"""Do gates come and go without changing what a model computes, and refuse what they cannot do?"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from gates.attachable import SmallResNet, randomised, resnet, transformer
from l0runtime.errors import GateParameterError, InputError, NoGateError, OptionError, UnsupportedModelError
from l0runtime.gates import GateSpec, attach, detach, freeze, gates_in, report, thaw

MODELS = pytest.mark.parametrize("make", [resnet, transformer])


@MODELS
def test_attaching_changes_neither_the_function_nor_a_tensor_and_detaching_restores_every_name(make) -> None:
    model, inputs = make()
    before, output = copy.deepcopy(model.state_dict()), model(*inputs)
    kind = type(model)
    attach(model, "auto", inputs)
    assert torch.equal(model(*inputs), output)
    detach(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert type(model) is kind
    assert not model._forward_pre_hooks
    assert torch.equal(model(*inputs), output)


@MODELS
def test_a_closed_unit_is_as_good_as_zeroed_by_hand_and_folding_keeps_the_function(make) -> None:
    model, inputs = make()
    gates = attach(model, GateSpec(kinds=("units",)), inputs)
    with torch.no_grad():
        for gate in gates:
            gate.log_alpha[0] = -3.0
            gate.log_alpha[1] = 0.5
    gated = model(*inputs)
    z = 1.2 * torch.sigmoid(torch.tensor(0.5)) - 0.1
    by_hand, _ = make()
    names = {"block1.bn1", "block2.bn1"} if make is resnet else {"down"}
    with torch.no_grad():
        for name in names:
            layer = by_hand.get_submodule(name)
            assert isinstance(layer, nn.BatchNorm2d | nn.Linear)
            rows = [layer.weight, layer.bias] if isinstance(layer, nn.BatchNorm2d) else [layer.weight.T]
            for row in rows:
                row[0] = 0
                row[1] *= z
    assert torch.allclose(gated, by_hand(*inputs), atol=1e-6)
    detach(model)
    assert torch.allclose(model(*inputs), gated, atol=1e-6)


def test_detaching_without_folding_leaves_the_trained_parameters() -> None:
    model, inputs = resnet()
    output = model(*inputs)
    gates = attach(model, "auto", inputs)
    with torch.no_grad():
        for gate in gates:
            gate.log_alpha.fill_(-3.0)
    assert not torch.allclose(model(*inputs), output)
    detach(model, fold=False)
    assert torch.equal(model(*inputs), output)


def test_a_mapping_gates_the_named_layers_without_a_trace() -> None:
    model, _ = resnet()
    gates = attach(model, {"block*.conv1": "output", "fc": "input"})
    assert [(g.place.name, g.size) for g in gates] == [("block1.conv1", 4), ("block2.conv1", 5), ("fc.input", 6)]
    assert [p.tensor for p in gates.gate("fc.input").place.points] == ["fc.weight"]


def test_patterns_and_kinds_choose_among_the_places() -> None:
    model, inputs = resnet()
    spec = GateSpec(kinds=("units", "blocks"), include=("block*",), exclude=("block1*",))
    assert [g.place.name for g in attach(model, spec, inputs)] == ["block2.conv1", "block2.bn2.block"]


def test_frozen_gates_are_fixed_in_training_and_closed_ones_stay_closed() -> None:
    model, inputs = resnet()
    gates = attach(model, GateSpec(kinds=("units",)), inputs)
    gate = gates.gate("block1.conv1")
    with torch.no_grad():
        gate.log_alpha[:2] = torch.tensor([-3.0, 0.5])
    freeze(model)
    model.train()
    model(*inputs)
    z = 1.2 * torch.sigmoid(torch.tensor(0.5)) - 0.1
    assert torch.allclose(gate.current(), torch.tensor([0.0, float(z), 1.0, 1.0]))
    assert not gate.log_alpha.requires_grad
    assert gate.probability_open().tolist() == [0, 1, 1, 1]
    freeze(model, binary=True)
    assert gate.current().tolist() == [0, 1, 1, 1]
    thaw(model)
    assert gate.log_alpha.requires_grad
    assert float(gate.log_alpha[1].detach()) == 0.5


def test_a_frozen_state_travels_in_the_state_dict_both_ways() -> None:
    model, inputs = resnet()
    gates = attach(model, "auto", inputs)
    with torch.no_grad():
        gates.gate("block1.conv1").log_alpha[0] = -3.0
    thawed = copy.deepcopy(model.state_dict())
    freeze(model)
    twin = randomised(SmallResNet())
    attach(twin, "auto", inputs)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(*inputs), model(*inputs))
    assert report(twin).lines[0].is_frozen
    twin.load_state_dict(thawed)
    assert not report(twin).lines[0].is_frozen


@MODELS
def test_copies_and_pickles_have_gates_of_their_own(make) -> None:
    model, inputs = make()
    attach(model, "auto", inputs)
    model.train()
    model(*inputs)  # leaves a sample behind, which cannot be copied
    twin = copy.deepcopy(model).eval()
    gates, other = gates_in(model), gates_in(twin)
    assert gates is not None
    assert other is not None
    with torch.no_grad():
        for gate in other:
            gate.log_alpha.fill_(-3.0)
    assert all(bool((gate.log_alpha > 2).all()) for gate in gates)
    model.eval()
    assert not torch.allclose(model(*inputs), twin(*inputs))


@MODELS
def test_taking_the_gates_out_of_a_copy_leaves_the_original_as_it_was(make) -> None:
    model, inputs = make()
    attach(model, "auto", inputs)
    output = model(*inputs)
    twin, other = copy.deepcopy(model), copy.deepcopy(model)
    detach(twin)
    assert torch.equal(model(*inputs), output)
    detach(model)
    assert torch.equal(model(*inputs), output)
    assert torch.equal(twin(*inputs), output)
    assert torch.equal(other(*inputs), output)
    attach(twin, "auto", inputs)
    assert torch.equal(twin(*inputs), output)
    assert torch.equal(model(*inputs), output)


def test_the_report_counts_kept_units_and_cost() -> None:
    model, inputs = resnet()
    gates = attach(model, GateSpec(kinds=("units",)), inputs)
    with torch.no_grad():
        gates.gate("block1.conv1").log_alpha[:] = torch.tensor([-3.0, -3.0, 0.0, 4.0])
    result = report(model)
    assert [(line.name, line.kept, line.units) for line in result.lines] == [
        ("block1.conv1", 2, 4),
        ("block2.conv1", 5, 5),
    ]
    assert result.lines[0].undecided == 3  # P(z != 0) is 0.198, 0.198, 0.832 and 0.996
    pixels = 36
    total = pixels * 9 * (12 + 48 + 60) + 18
    assert result.kept_cost["macs"] == pytest.approx((total - pixels * 9 * 24) / total)
    assert "block1.conv1  units       2 of 4      P(open) 0.556  3 undecided" in str(result)


def test_a_second_attach_is_refused() -> None:
    model, inputs = resnet()
    attach(model, "auto", inputs)
    with pytest.raises(UnsupportedModelError) as caught:
        attach(model, "auto", inputs)
    assert str(caught.value) == "SmallResNet: has gates already; call detach first."


def test_without_gates_there_is_nothing_to_detach_freeze_or_report() -> None:
    for action in (detach, freeze, thaw):
        with pytest.raises(NoGateError) as caught:
            action(nn.Linear(2, 2))
        assert str(caught.value) == "Linear: has no attached gates; call attach first."
    with pytest.raises(NoGateError) as caught:
        report(nn.Linear(2, 2))
    assert str(caught.value) == "Linear: has no gates; call attach first, or build it of gated layers."


def test_a_trace_needs_example_inputs() -> None:
    with pytest.raises(InputError) as caught:
        attach(SmallResNet())
    assert str(caught.value) == (
        "attach: no example inputs. Give one tensor per positional input of SmallResNet.forward, batch first, or name "
        "the layers by pattern ({'layer*.conv1': 'output'})."
    )


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    model, inputs = resnet()
    with pytest.raises(OptionError) as caught:
        attach(model, {"layer*": "output"})
    assert str(caught.value) == (
        "attach: the pattern 'layer*' fits no linear or convolutional layer; known: stem, block1.conv1, block1.conv2, "
        "block2.conv1, block2.conv2, fc."
    )
    with pytest.raises(OptionError) as caught:
        attach(model, GateSpec(include=("layer*",)), inputs)
    assert str(caught.value) == (
        "attach: the pattern 'layer*' fits no place of the model; it has block1.conv1, block2.conv1, stem.stream, "
        "block1.bn2.block, block2.bn2.block."
    )


def test_a_network_without_a_place_says_why() -> None:
    with pytest.raises(NoGateError) as caught:
        attach(nn.Linear(3, 2), "auto", torch.randn(2, 3))
    assert str(caught.value) == (
        "Linear: no place for gates of the kinds units, heads, stream, blocks fits the spec "
        "(Linear: it is an output of the model)."
    )


def test_the_inputs_of_a_grouped_convolution_are_refused() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        attach(nn.Sequential(nn.Conv2d(4, 4, 1, groups=2)), {"0": "input"})
    assert str(caught.value) == (
        "0: the inputs of a grouped convolution (groups=2) share no column of its weight; gate its outputs or the "
        "layer before."
    )


def test_an_unknown_side_and_an_unknown_spec_are_refused() -> None:
    with pytest.raises(GateParameterError) as caught:
        attach(nn.Sequential(nn.Linear(2, 2)), {"0": "both"})  # type: ignore[dict-item]
    assert str(caught.value) == "attach: side of '0' is 'both'; expected 'input' or 'output'."
    with pytest.raises(OptionError) as error:
        attach(nn.Linear(2, 2), "all")  # type: ignore[arg-type]
    assert str(error.value) == "attach: spec is 'all'; expected 'auto', a GateSpec, or a mapping of layer patterns."


def test_a_state_dict_survives_pickling() -> None:
    model, inputs = resnet()
    attach(model, "auto", inputs)
    state = pickle.loads(pickle.dumps(model.state_dict()))
    model.load_state_dict(state)


class TiedDecoder(nn.Module):
    """Embedding, one residual block, norm, and the embedding's own weights as the output layer; inputs [batch, n]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.up = nn.Linear(6, 5)
        self.down = nn.Linear(5, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.down(torch.relu(self.up(x)))
        logits: Tensor = self.head(self.norm(x))
        return logits


def test_of_tied_weights_the_embedding_alone_is_gated_and_folding_unties_them() -> None:
    model, tokens = randomised(TiedDecoder()), torch.tensor([[1, 5, 2], [0, 6, 3]])
    gates = attach(model, "auto", tokens)
    stream = next(gate for gate in gates if gate.place.kind == "stream")
    assert "embed.weight" in {point.tensor for point in stream.place.points}
    assert "head.weight" not in {point.tensor for point in stream.place.points}
    detach(model)
    assert model.get_parameter("head.weight") is model.get_parameter("embed.weight")  # all gates were 1
    attach(model, "auto", tokens)
    for gate in gates_in(model) or ():
        if gate.place.kind == "stream":
            with torch.no_grad():
                gate.log_alpha[:3] = torch.tensor([-3.0, 0.5, 1.0])
    table, head = model.get_parameter("head.weight").clone(), model.get_parameter("head.weight")
    output = model(tokens)
    detach(model)
    assert torch.equal(model.get_parameter("head.weight"), table)  # the output layer reads what the norm gates
    assert model.get_parameter("head.weight") is head
    assert model.get_parameter("embed.weight") is not head
    assert torch.allclose(model(tokens), output, atol=1e-6)


def test_a_model_with_tied_weights_is_detached_as_it_was_trained() -> None:
    model, tokens = randomised(TiedDecoder()), torch.tensor([[1, 5, 2], [0, 6, 3]])
    for gate in attach(model, "auto", tokens):
        with torch.no_grad():
            gate.log_alpha.fill_(0.5)
    detach(model, fold=False)
    assert model.get_parameter("head.weight") is model.get_parameter("embed.weight")


def test_parameters_keep_their_order_where_gates_scale_only_some_of_them() -> None:
    model, inputs = transformer()
    names = list(model.state_dict())
    attach(model, GateSpec(kinds=("heads", "units")), inputs)
    detach(model)
    assert list(model.state_dict()) == names


class Conv1D(nn.Module):
    """GPT-2's linear layer as transformers writes it: weight [in, out]."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(3, 5), (2, 3)),
        (nn.Conv1d(3, 5, 2), (2, 3, 4)),
        (nn.Conv2d(3, 5, 2), (2, 3, 4, 4)),
        (nn.Conv3d(3, 5, 2), (2, 3, 4, 4, 4)),
        (nn.ConvTranspose2d(3, 5, 2), (2, 3, 4, 4)),
        (Conv1D(5, 3), (2, 3)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_named_gates_multiply_the_inputs_or_outputs_of_any_layer(layer: nn.Module, shape, side: str) -> None:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    values = torch.tensor([0.0, 0.5, 1.0] if side == "input" else [0.0, 0.5, 1.0, 1.0, 0.25])
    along = (1, -1, *([1] * (len(shape) - 2)))
    model = nn.Sequential(copy.deepcopy(layer))
    expected = layer(x * values.view(along)) if side == "input" else layer(x) * values.view(along)
    gates = attach(model, {"0": side})  # type: ignore[dict-item]
    (gate,) = gates
    gate.freeze(values)
    assert torch.allclose(model(x), expected, atol=1e-6)
    detach(model)
    assert torch.allclose(model(x), expected, atol=1e-6)


def test_the_outputs_of_a_grouped_transposed_convolution_are_refused() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        attach(nn.Sequential(nn.ConvTranspose2d(4, 4, 1, groups=2)), {"0": "output"})
    assert str(caught.value) == (
        "0: the outputs of a grouped convolution (groups=2) share no column of its weight; gate its inputs or the "
        "layer behind."
    )


def test_detaching_a_copy_leaves_the_original_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    x = torch.randn(2, 3, 8, 8)
    attach(model.eval(), "auto", x)
    expected = model(x)
    twin = copy.deepcopy(model)
    detach(twin)
    torch.testing.assert_close(twin(x), expected)
    torch.testing.assert_close(model(x), expected)
