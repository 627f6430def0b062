"""Checkpoints of l0-arm compute what the original's masked layers compute."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from format_agreement import assert_same, assert_same_as_masked, load_made, recognised, resave

from benchmarks.sources.masked import l0_arm
from converters.sources import GatedModel, SourceOptions, load_source
from l0runtime.errors import L0RuntimeError, ModelFileError, OptionError


def load(path: Path, **extra: str) -> GatedModel:
    return load_source(path, SourceOptions(extra=extra))


@pytest.mark.parametrize("network", ["lenet5", "mlp"])
def test_a_network_computes_what_the_masked_layers_compute(tmp_path: Path, network: str) -> None:
    made = l0_arm.make(tmp_path, True, network)
    assert recognised(made.path) == "l0-arm"
    gated = assert_same_as_masked(made)
    state = torch.load(made.path, weights_only=True)
    kept = [int((torch.sigmoid(7 * phi) >= 0.5).sum()) for name, phi in state.items() if name.endswith("z_phi")]
    assert [group.kept for group in gated.gates] == kept


def test_a_wide_resnet_has_its_gates_before_the_second_batch_norm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {"conv1.weight": torch.randn(4, 3, 3, 3) / 3}

    def norm(name: str, width: int) -> None:
        state.update({f"{name}.{key}": torch.rand(width) + 0.5 for key in ("weight", "running_var")})
        state.update({f"{name}.{key}": torch.randn(width) for key in ("bias", "running_mean")})
        state[f"{name}.num_batches_tracked"] = torch.tensor(1)

    width_in = 4
    for group, width in enumerate((4, 6, 8), start=1):
        block = f"block{group}.layer.0"
        norm(f"{block}.bn1", width_in)
        state[f"{block}.conv1.weights"] = torch.randn(width, width_in, 3, 3) / 5
        state[f"{block}.conv1.z_phi"] = torch.randn(width) * 0.3
        norm(f"{block}.bn2", width)
        state[f"{block}.conv2.weight"] = torch.randn(width, width, 3, 3) / 6
        if width != width_in:
            state[f"{block}.convShortcut.weight"] = torch.randn(width, width_in, 1, 1)
        width_in = width
    norm("bn", 8)
    state["fcout.weight"], state["fcout.bias"] = torch.randn(8, 10), torch.randn(10)
    torch.save(state, tmp_path / "0.model")
    x = torch.rand(2, 3, 32, 32)

    def normed(name: str, value: torch.Tensor) -> torch.Tensor:
        keys = ("running_mean", "running_var", "weight", "bias")
        return torch.nn.functional.batch_norm(value, *(state[f"{name}.{key}"] for key in keys)).relu()

    out = torch.nn.functional.conv2d(x, state["conv1.weight"], padding=1)
    for group in (1, 2, 3):
        block, stride = f"block{group}.layer.0", 1 if group == 1 else 2
        active = normed(f"{block}.bn1", out)
        gates = l0_arm.final_gates(state[f"{block}.conv1.z_phi"]).view(1, -1, 1, 1)
        inner = torch.nn.functional.conv2d(active, state[f"{block}.conv1.weights"], padding=1) * gates
        inner = torch.nn.functional.conv2d(
            normed(f"{block}.bn2", inner), state[f"{block}.conv2.weight"], None, stride, 1
        )
        shortcut = state.get(f"{block}.convShortcut.weight")
        out = inner + (out if shortcut is None else torch.nn.functional.conv2d(active, shortcut, None, stride))
    pooled = torch.nn.functional.avg_pool2d(normed("bn", out), 8).view(-1, 8)
    assert_same(load(tmp_path / "0.model"), (x,), pooled @ state["fcout.weight"] + state["fcout.bias"])


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"k": "3", "t": "0.4"}, lambda phi: torch.sigmoid(3 * phi) * (torch.sigmoid(3 * phi) >= 0.4)),
        ({"hardsigmoid": "yes"}, lambda phi: (phi + 0.5).clamp(0, 1) * ((phi + 0.5).clamp(0, 1) >= 0.5)),
        ({"gates": "binary"}, lambda phi: (phi > 0).float()),
    ],
)
def test_other_configurations_are_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], rule: Any
) -> None:
    made = l0_arm.make(tmp_path, True, "mlp")
    monkeypatch.setattr(l0_arm, "final_gates", rule)
    with torch.no_grad():
        expected = made.masked(*made.inputs)
    assert_same(load(made.path, **options), made.inputs, expected)
    with pytest.raises(AssertionError):
        assert_same(load_made(made), made.inputs, expected)


def test_the_default_rule_is_noted(tmp_path: Path) -> None:
    assert load_made(l0_arm.make(tmp_path, True)).notes == (
        "gates: pi(k phi) where at least t, k = 7, t = 0.5; the file does not say it, see the options k, t, "
        "hardsigmoid and gates",
    )


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            lambda state: state.update({"fcs.0.z_phi": torch.zeros(5)}),
            ModelFileError,
            "fcs.0.z_phi has shape [5]; expected [128], one gate for each input unit. "
            "The file is damaged, or its parts belong to different models.",
        ),
        (
            lambda state: state.pop("fcs.2.weights"),
            ModelFileError,
            "holds fcs.2.z_phi, but not fcs.2.weights. The file is damaged.",
        ),
        (
            lambda state: state["convs.0.z_phi"].fill_(float("nan")),
            ModelFileError,
            "convs.0.z_phi holds NaN or infinity (6 of 6 values); expected finite numbers. "
            "The training diverged or the file is damaged; take an earlier checkpoint.",
        ),
        (
            lambda state: state.update({"extra": torch.zeros(1)}),
            ModelFileError,
            "parameters do not fit LeNet5: missing none; left over extra.",
        ),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(
    tmp_path: Path, change: Any, kind: type[L0RuntimeError], message: str
) -> None:
    path = l0_arm.make(tmp_path, True).path
    resave(path, change)
    with pytest.raises(kind, match=f"^{re.escape(f'{path}: {message}')}$"):
        load(path)


def test_an_unknown_option_lists_the_known_ones(tmp_path: Path) -> None:
    path = l0_arm.make(tmp_path, True).path
    with pytest.raises(OptionError) as caught:
        load(path, beta="3")
    assert str(caught.value) == f"{path}: format l0-arm has no option 'beta'; it has k, t, hardsigmoid, gates."
    with pytest.raises(OptionError) as caught:
        load(path, gates="soft")
    assert str(caught.value) == f"{path}: option gates=soft: expected fractional or binary."
