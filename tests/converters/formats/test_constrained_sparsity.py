"""Checkpoints of constrained_sparsity compute what the original's masked layers compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from format_agreement import assert_same, assert_same_as_masked, load_made, outputs, recognised, resave
from torch import nn

from benchmarks.sources.masked import constrained_sparsity
from converters.sources import GatedModel, SourceOptions, load_source
from l0runtime.errors import ModelFileError, OptionError


def load(path: Path, **extra: str) -> GatedModel:
    return load_source(path, SourceOptions(extra=extra))


@pytest.mark.parametrize("network", ["lenet5", "mlp", "unstructured", "wrn-L0", "wrn-regular"])
def test_a_network_computes_what_the_masked_layers_compute(tmp_path: Path, network: str) -> None:
    made = constrained_sparsity.make(tmp_path, True, network)
    assert recognised(made.path) == "constrained-sparsity"
    gated = assert_same_as_masked(made)
    assert any(group.kept < group.units for group in gated.gates)


def test_the_kind_of_batch_norm_changes_the_function_and_is_asked_for(tmp_path: Path) -> None:
    made = constrained_sparsity.make(tmp_path, True, "wrn-L0")
    (skipping,) = outputs(load(made.path, batch_norm="L0"), *made.inputs)
    (constant,) = outputs(load(made.path, batch_norm="regular"), *made.inputs)
    assert not torch.allclose(skipping, constant, rtol=0.01)
    with pytest.raises(OptionError) as caught:
        load(made.path)
    assert str(caught.value) == (
        f"{made.path}: 7 channels of layer1.0.conv1 are closed, and the file does not say what layer1.0.batch_norm2 "
        "does with them. Add --set batch_norm=L0 if the network was trained with --bn_type L0 "
        "(closed channels stay 0), or --set batch_norm=regular."
    )


def test_with_all_channels_open_the_kind_of_batch_norm_does_not_matter(tmp_path: Path) -> None:
    made = constrained_sparsity.make(tmp_path, True, "wrn-L0")
    resave(made.path, lambda state: [t.fill_(3) for name, t in state.items() if name.endswith("log_alpha")])
    assert all(group.kept == group.units for group in load(made.path).gates)


def resnet(bottleneck: bool) -> dict[str, torch.Tensor]:
    """A narrow ResNet with gates on conv1 of every block, and 1x1 maps already at the third group."""
    torch.manual_seed(0)
    kernel, state = 7 if bottleneck else 3, dict[str, torch.Tensor]()

    def conv(name: str, width_in: int, width_out: int, size: int, norm: str) -> None:
        state[f"{name}.weight"] = torch.randn(width_out, width_in, size, size) / (width_in * size * size) ** 0.5
        for key in ("weight", "running_var"):
            state[f"{norm}.{key}"] = torch.rand(width_out) + 0.5
        for key in ("bias", "running_mean"):
            state[f"{norm}.{key}"] = torch.randn(width_out)
        state[f"{norm}.num_batches_tracked"] = torch.tensor(1)

    conv("conv1", 3, 4, kernel, "batch_norm1")
    width = 4
    for group in (1, 2, 3, 4):
        block = f"layer{group}.0"
        inner, out = 2 * group, 4 * group
        sizes = (
            [(width, inner, 1), (inner, inner, 3), (inner, out, 1)] if bottleneck else [(width, out, 3), (out, out, 3)]
        )
        for number, (width_in, width_out, size) in enumerate(sizes, start=1):
            conv(f"{block}.conv{number}", width_in, width_out, size, f"{block}.batch_norm{number}")
        state[f"{block}.conv1.weight_log_alpha"] = torch.randn(sizes[0][1]) * 3
        if group > 1:
            conv(f"{block}.shortcut_conv", width, out, 1, f"{block}.shortcut_bn")
        width = out
    state["fcout.weight"], state["fcout.bias"] = torch.randn(5, width), torch.randn(5)
    return state


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_resnet_computes_what_its_description_says(tmp_path: Path, bottleneck: bool) -> None:
    state = resnet(bottleneck)
    torch.save(state, tmp_path / "model.pt")
    x = torch.rand(2, 3, 64, 64)
    f = nn.functional

    def convolved(value: torch.Tensor, name: str, norm: str, stride: int) -> torch.Tensor:
        weight, gates = state[f"{name}.weight"], state.get(f"{name}.weight_log_alpha")
        z = torch.ones(len(weight)) if gates is None else constrained_sparsity.medians(gates)
        out = f.conv2d(value, weight * z.view(-1, 1, 1, 1), None, stride, weight.shape[2] // 2)
        keys = ("running_mean", "running_var", "weight", "bias")
        normed = f.batch_norm(out, *(state[f"{norm}.{key}"] for key in keys))
        return torch.where((z != 0).view(1, -1, 1, 1), normed, out)  # L0 BatchNorm

    value = convolved(x, "conv1", "batch_norm1", 2).relu()
    value = f.max_pool2d(value, 3, 2, 1) if bottleneck else value
    for group in (1, 2, 3, 4):
        block, stride = f"layer{group}.0", 1 if group == 1 else 2
        count, strided = (3, 2) if bottleneck else (2, 1)
        out = value
        for number in range(1, count + 1):
            out = convolved(
                out, f"{block}.conv{number}", f"{block}.batch_norm{number}", stride if number == strided else 1
            )
            out = out.relu() if number < count else out
        shortcut = value if group == 1 else convolved(value, f"{block}.shortcut_conv", f"{block}.shortcut_bn", stride)
        value = (out + shortcut).relu()
    expected = f.linear(value.mean((2, 3)), state["fcout.weight"], state["fcout.bias"])
    assert_same(load(tmp_path / "model.pt", batch_norm="L0"), (x,), expected)


def plain_mlp() -> nn.Module:
    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fcs = nn.Sequential(nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.fcs(x)
            return output

    return Renamed()


def test_another_network_comes_from_its_factory_with_plain_layers(tmp_path: Path) -> None:
    made = constrained_sparsity.make(tmp_path, True, "mlp")
    gated = load_source(made.path, SourceOptions(model=plain_mlp))
    with torch.no_grad():
        assert_same(gated, made.inputs, made.masked(*made.inputs))


def test_an_unknown_network_asks_for_its_factory(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(3, 2), "a.weight_log_alpha": torch.ones(2)}, tmp_path / "model.pt")
    with pytest.raises(OptionError) as caught:
        load(tmp_path / "model.pt")
    assert str(caught.value) == (
        f"{tmp_path / 'model.pt'}: gates of an unknown network (first parameter a.weight); known are L0MLP, L0LeNet5, "
        "L0WideResNet and L0ResNet. Name the factory of the same network with plain layers: "
        "--model package.module:factory."
    )


def test_the_temperature_is_an_option_and_noted(tmp_path: Path) -> None:
    made = constrained_sparsity.make(tmp_path, True, "mlp")
    kept = [group.kept for group in load_made(made).gates]
    assert [group.kept for group in load(made.path, temperature="0.2").gates] != kept
    assert load_made(made).notes[0] == (
        "gates: median rule at temperature 0.667; the file does not say it, see the option temperature"
    )
    with pytest.raises(OptionError, match=r"HardConcrete: beta is -1\.0; expected a finite number above 0\.$"):
        load(made.path, temperature="-1")


def test_gates_of_the_wrong_length_and_missing_bias_gates_are_named(tmp_path: Path) -> None:
    made = constrained_sparsity.make(tmp_path, True, "mlp")
    resave(made.path, lambda state: state.update({"fcs.0.weight_log_alpha": torch.ones(12)}))
    with pytest.raises(ModelFileError, match=r"weight_log_alpha has shape \[12\]; expected \[20\], one gate for each"):
        load(made.path)
    made = constrained_sparsity.make(tmp_path, True, "unstructured")
    resave(made.path, lambda state: state.pop("fcs.2.bias_log_alpha"))
    with pytest.raises(ModelFileError, match=r"holds no fcs\.2\.bias_log_alpha\. The file is damaged\.$"):
        load(made.path)
