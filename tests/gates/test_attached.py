"""Do attached gates draw, share and differentiate their samples as they should, in every mode?"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from gates.attachable import resnet, transformer
from l0runtime.errors import GateParameterError, UnsupportedModelError
from l0runtime.gates import GateSpec, HardConcrete, attach, detach

PER_EXAMPLE = GateSpec(kinds=("units",), per_example=True)


def test_each_call_draws_anew_and_all_parameters_of_a_place_see_the_same_sample() -> None:
    model, inputs = resnet()
    gates = attach(model, "auto", inputs, options=GateSpec(drop_rate=0.5))
    model.train()
    gate = gates.gate("block1.conv1")
    model(*inputs)
    first = gate.current()
    bn = model.get_submodule("block1.bn1")
    weight, bias = bn.parametrizations.weight.original, bn.parametrizations.bias.original
    assert torch.equal(bn.weight, weight * first)
    assert torch.equal(bn.bias, bias * first)
    model(*inputs)
    assert not torch.equal(gate.current(), first)


def test_one_draw_for_all_gates_is_the_distribution_s_own_sample() -> None:
    model, inputs = resnet()
    gates = attach(model, GateSpec(kinds=("units",), drop_rate=0.4), inputs)
    torch.manual_seed(5)
    gates.draw(2)
    torch.manual_seed(5)
    noise = HardConcrete().draw_noise((9,), torch.zeros(1))
    log_alpha = torch.cat([gate.log_alpha for gate in gates])
    expected = HardConcrete().sample(log_alpha, noise)
    assert torch.equal(torch.cat([gate.drawn for gate in gates]), expected)  # type: ignore[arg-type]


def test_gradients_reach_every_gate_and_every_parameter() -> None:
    for make in (resnet, transformer):
        model, inputs = make()
        gates = attach(model, "auto", inputs, options=GateSpec(drop_rate=0.5))
        model.train()
        torch.manual_seed(0)
        for _ in range(8):  # one sample alone may be clipped to 0 or 1, where its gradient is 0
            model(*inputs).square().sum().backward()
        assert all(gate.log_alpha.grad is not None and gate.log_alpha.grad.abs().sum() > 0 for gate in gates)
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_part_of_the_model_called_by_itself_is_refused_rather_than_run_without_a_sample() -> None:
    model, inputs = resnet()
    attach(model, GateSpec(kinds=("units",)), inputs)
    model.train()
    with pytest.raises(GateParameterError) as caught:
        model.get_submodule("block1")(torch.randn(2, 6, 6, 6))
    assert str(caught.value) == (
        "gate block1.conv1: no sample has been drawn. Call the model that was given to attach, not a part of it, or "
        "switch to eval()."
    )


def test_the_expected_shares_are_the_mean_probabilities() -> None:
    model, inputs = resnet()
    gates = attach(model, "auto", inputs)
    with torch.no_grad():
        for gate in gates:
            gate.log_alpha.normal_(0, 2)
    expected = [torch.sigmoid(g.log_alpha + 2 / 3 * torch.log(torch.tensor(11.0))).mean() for g in gates]
    assert torch.allclose(gates.shares(), torch.stack(expected))


def test_one_sample_per_example_multiplies_what_one_sample_per_batch_would() -> None:
    """The hooks against the parametrisations: with equal samples for all examples both give the same."""
    model, inputs = resnet()
    twin = copy.deepcopy(model)
    per_batch, per_example = attach(model, GateSpec(kinds=("units",)), inputs), attach(twin, PER_EXAMPLE, inputs)
    for one, other in zip(per_batch, per_example, strict=True):
        z = torch.rand(one.size)
        one.drawn, other.drawn = z, z.expand(2, -1)
        one.train()
        other.train()
    # the models stay in eval mode, so no new sample is drawn and BatchNorm is the same for both
    per_batch.training = per_example.training = False
    assert torch.allclose(model(*inputs), twin(*inputs), atol=1e-6)


def test_one_sample_per_example_is_drawn_for_each_example() -> None:
    model, inputs = resnet()
    gates = attach(model, GateSpec(kinds=("units", "stream", "blocks"), per_example=True, drop_rate=0.5), inputs)
    model.train()
    model(*inputs).sum().backward()
    assert [tuple(gate.current().shape) for gate in gates] == [(2, 4), (2, 5), (2, 6), (2, 1), (2, 1)]
    assert not torch.equal(gates.gate("block1.conv1").current()[0], gates.gate("block1.conv1").current()[1])


def test_gates_per_example_fold_into_the_same_parameters_when_detached() -> None:
    model, inputs = resnet()
    gates = attach(model, PER_EXAMPLE, inputs)
    with torch.no_grad():
        for gate in gates:
            gate.log_alpha.normal_(0, 2, generator=torch.Generator().manual_seed(1))
    gated = model(*inputs)
    detach(model)
    assert torch.allclose(model(*inputs), gated, atol=1e-6)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_per_example_samples_are_refused_where_a_projection_is_never_called() -> None:
    model, inputs = transformer()
    with pytest.raises(UnsupportedModelError) as caught:
        attach(model, GateSpec(kinds=("heads",), per_example=True), inputs)
    assert str(caught.value) == (
        "gate attention.heads: one sample per example needs a layer that is called, and attention.out_proj.weight is "
        "used without one (NonDynamicallyQuantizableLinear). Use one sample per batch (per_example=False)."
    )


def test_a_layer_that_sees_other_examples_than_the_model_is_refused_per_example() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x.flatten(0, 1))).unflatten(0, x.shape[:2])

    model = Folded()
    attach(model, PER_EXAMPLE, (torch.randn(2, 5, 3),))
    model.train()
    with pytest.raises(GateParameterError) as caught:
        model(torch.randn(2, 5, 3))
    assert str(caught.value) == (
        "gate a: 2 samples for an activation of shape [10, 4]; expected the batch on axis 0. Use one sample per batch "
        "(per_example=False) here."
    )


def test_half_precision_parameters_stay_half() -> None:
    model, inputs = transformer()
    attach(model, "auto", inputs)
    model.to(torch.bfloat16).train()
    output = model(inputs[0].to(torch.bfloat16))
    assert output.dtype == torch.bfloat16
    output.sum().backward()


# torch.compile looks for .grad on every tensor that a module holds, the sample of the gates among them
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("make", [resnet, transformer])
def test_a_compiled_model_is_one_graph_and_trains_as_the_plain_one(make) -> None:
    """torch.compile with everything but the code generator, which needs a C++ compiler."""
    losses: list[list[float]] = []
    for compiled in (False, True):
        model, inputs = make()
        torch.manual_seed(0)
        gates = attach(model, "auto", inputs, options=GateSpec(drop_rate=0.5))
        model.train()
        call = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        torch.manual_seed(1)
        losses.append([])
        for _ in range(3):
            optimizer.zero_grad()
            loss = call(*inputs).square().mean()
            loss.backward()
            optimizer.step()
            losses[-1].append(float(loss.detach()))
        assert all(gate.log_alpha.grad is not None for gate in gates)
        model.eval()
        assert torch.allclose(call(*inputs), model(*inputs), atol=1e-6)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("per_example", [False, True])
def test_under_autocast_the_gates_stay_in_float32_and_get_gradients(per_example: bool) -> None:
    model, inputs = resnet()
    options = GateSpec(kinds=("units",), drop_rate=0.5, per_example=per_example)
    gates = attach(model, options, inputs)
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(*inputs)
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    for gate in gates:
        assert gate.current().dtype == torch.float32
        assert gate.log_alpha.grad is not None
        assert bool(gate.log_alpha.grad.isfinite().all())
