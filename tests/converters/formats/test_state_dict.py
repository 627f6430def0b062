"""Bare parameters go into the architecture that the user names, all of them and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from converters.formats.state_dict import SOURCE
from converters.sources import Candidate, GatedModel, SourceOptions, find_source
from l0runtime.errors import ModelFileError, OptionError
from l0runtime.gates import GatedLinear


def make() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), GatedLinear(3, 2, rule="median"))


def make_with_inputs() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return make(), (torch.ones(5, 4),)


def not_a_module() -> int:
    return 3


def failing() -> nn.Module:
    raise KeyError("width")


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    net = make()
    assert isinstance(net, nn.Sequential)
    with torch.no_grad():
        net[1].gate.log_alpha.copy_(torch.tensor([-9.0, 9, 9]))
    return net.state_dict()


def load(path: Path, model: object = make) -> GatedModel:
    return SOURCE.load(Candidate(path), SourceOptions(model=model))  # type: ignore[arg-type]


@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_parameters_are_found_where_training_scripts_leave_them(
    tmp_path: Path, state: dict[str, torch.Tensor], key: str | None, prefix: str
) -> None:
    prefixed = {prefix + name: tensor for name, tensor in state.items()}
    torch.save(prefixed if key is None else {key: prefixed, "epoch": 3}, tmp_path / "a.pth")
    assert find_source(Candidate(tmp_path / "a.pth")).name == "state-dict"
    gated = load(tmp_path / "a.pth")
    assert gated.module is not None
    assert all(torch.equal(tensor, state[name]) for name, tensor in gated.module.state_dict().items())
    assert [(g.layer, g.kept, g.rule) for g in gated.gates] == [("1", 2, "median")]


def test_a_safetensors_file_works_too(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    assert find_source(Candidate(tmp_path / "a.safetensors")).name == "state-dict"
    assert load(tmp_path / "a.safetensors").gates[0].kept == 2


def test_inputs_come_from_the_factory_or_by_trial(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, tmp_path / "a.pth")
    assert load(tmp_path / "a.pth", make_with_inputs).example_inputs[0].shape == (5, 4)
    assert load(tmp_path / "a.pth").notes == ("the example input, 1x4, was found by trial; --input SHAPE sets another",)


def test_without_a_model_the_message_says_how_to_name_it(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(OptionError) as caught:
        load(tmp_path / "a.pth", None)
    assert str(caught.value) == (
        f"{tmp_path / 'a.pth'}: holds parameters alone. Say which model they belong to: "
        "model=package.module:factory, or --model on the command line."
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (not_a_module, "gave int; expected a torch.nn.Module, or a module and its inputs."),
        (failing, "calling it failed (KeyError: 'width')."),
    ],
)
def test_a_factory_that_gives_no_module_is_refused(
    tmp_path: Path, state: dict[str, torch.Tensor], model: object, message: str
) -> None:
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(OptionError) as caught:
        load(tmp_path / "a.pth", model)
    assert str(caught.value) == f"model {model!r}: {message}"


def test_missing_and_left_over_parameters_are_named(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    tensor = state.pop("0.bias")
    torch.save(state | {f"extra{n}": tensor for n in range(5)}, tmp_path / "a.pth")
    with pytest.raises(ModelFileError) as caught:
        load(tmp_path / "a.pth")
    assert str(caught.value) == (
        f"{tmp_path / 'a.pth'}: parameters do not fit Sequential: missing 0.bias; "
        "left over extra0, extra1, extra2 and 2 more."
    )


def test_a_wrong_shape_is_named(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save(state | {"0.weight": torch.ones(3, 5)}, tmp_path / "a.pth")
    with pytest.raises(ModelFileError, match=r"0\.weight has shape \[3, 5\]; Sequential expects \[3, 4\]\.$"):
        load(tmp_path / "a.pth")


def test_a_truncated_safetensors_file_is_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data[:-7])
    with pytest.raises(ModelFileError, match="truncated, or no safetensors file"):
        load(tmp_path / "a.safetensors")
