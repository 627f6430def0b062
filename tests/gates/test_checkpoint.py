"""Does a saved model come back as the same function, and does every kind of wrong file get a clear refusal?"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from l0runtime.errors import ModelFileError, UnsupportedModelError
from l0runtime.gates import (
    GatedConv2d,
    GatedLinear,
    GatedVGG,
    GateSpec,
    LeNet5,
    LeNet300,
    TargetCost,
    WideResNet,
    attach,
    freeze,
    gated_layers,
    gates_in,
    is_checkpoint,
    load,
    register_architecture,
    report,
    save,
)


def randomise(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save(randomise(LeNet300(inputs=6, hidden=(5, 4), classes=3)), path)
    return path


def rewrite(path: Path, *, header: object = None, drop: str = "", tensors: dict[str, Tensor] | None = None) -> None:
    """Write the file again with another header, without a tensor, or with other tensors."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
        kept = {name: file.get_tensor(name) for name in file.keys() if name != drop}  # noqa: SIM118
    if header is not None:
        metadata["l0runtime"] = header if isinstance(header, str) else json.dumps(header)
    safetensors.torch.save_file({**kept, **(tensors or {})}, path, metadata=metadata)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (LeNet300(inputs=6, hidden=(5, 4), classes=3, rule="median"), (2, 6)),
        (LeNet5(filters=(3, 4), hidden=7), (2, 1, 28, 28)),
        (GatedVGG(channels=1, stages=((4, 4), (6,)), batch_norm=True), (2, 1, 8, 8)),
        (GatedVGG(channels=1, stages=((4,),), batch_norm=False, rule="top-k"), (2, 1, 8, 8)),
        (WideResNet(depth=10, widen=1), (2, 3, 16, 16)),
        (nn.Sequential(GatedConv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), GatedLinear(16, 3)), (2, 1, 4, 4)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_model_comes_back_as_the_same_function(model: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(randomise(model), path)
    loaded = load(path)
    x = torch.randn(shape)
    assert type(loaded) is type(model)
    assert not loaded.training
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)
    rules = [layer.gate.rule for layer in gated_layers(model).values()]
    assert [layer.gate.rule for layer in gated_layers(loaded).values()] == rules


def test_a_rule_changed_after_building_is_the_one_that_is_saved(tmp_path: Path) -> None:
    model = LeNet300(inputs=6, hidden=(5, 4), classes=3)
    for layer in gated_layers(model).values():
        layer.gate.rule = "median"
    save(model, tmp_path / "m")
    assert {layer.gate.rule for layer in gated_layers(load(tmp_path / "m")).values()} == {"median"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    model = randomise(LeNet300(inputs=6, hidden=(5, 4), classes=3).to(dtype))
    save(model, tmp_path / "m")
    loaded = load(tmp_path / "m")
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, model.get_parameter(name))


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    @register_architecture("test-tied")
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config: dict[str, object] = {}
            self.first = nn.Linear(3, 3)
            self.second = nn.Linear(3, 3)
            self.second.weight = self.first.weight

    save(Tied(), tmp_path / "m")
    loaded = load(tmp_path / "m")
    assert loaded.get_submodule("first").weight is loaded.get_submodule("second").weight


def test_loading_leaves_the_random_state_alone(saved: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(saved)
    assert torch.equal(torch.rand(3), expected)


def test_a_file_is_recognised_by_its_header(saved: Path, tmp_path: Path) -> None:
    assert is_checkpoint(saved)
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, other)
    assert not is_checkpoint(other)
    assert not is_checkpoint(tmp_path / "missing")
    (tmp_path / "text").write_text("hello")
    assert not is_checkpoint(tmp_path / "text")


def refusal(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no") == "no such file; expected a checkpoint written by l0runtime.gates.save."


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "no such file; expected a checkpoint written by l0runtime.gates.save."


@pytest.mark.parametrize("length", [0, 5, 60, -1])
def test_a_truncated_file_is_refused(saved: Path, length: int) -> None:
    saved.write_bytes(saved.read_bytes()[:length])
    assert refusal(saved).startswith("truncated, or no safetensors file (")


def test_a_file_of_another_format_is_refused(saved: Path) -> None:
    saved.write_bytes(b"PK\x03\x04 a zip archive, such as torch.save writes")
    assert refusal(saved).startswith("truncated, or no safetensors file (")


def test_a_header_that_promises_more_than_the_file_holds_is_refused(saved: Path) -> None:
    saved.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    assert refusal(saved).startswith("truncated, or no safetensors file (")


def test_safetensors_from_elsewhere_are_refused(saved: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, saved)
    assert refusal(saved) == (
        "a safetensors file, but without the header of l0runtime.gates.save; it does not say which model it belongs to."
    )


def test_a_newer_format_is_refused(saved: Path) -> None:
    rewrite(saved, header={"version": 4, "architecture": "lenet-300-100", "config": {}})
    assert refusal(saved) == "written in format 4, this version reads up to 3; upgrade l0runtime."


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{", "its header is no JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))."),
        ([], "its header has no version; expected an object with version and architecture."),
        ({"version": True}, "its header has no version; expected an object with version and architecture."),
        ({"version": 0}, "written in format 0, which never existed; the file is damaged."),
        ({"version": 1}, "the header names no architecture with a config; expected both."),
        ({"version": 1, "architecture": "lenet-5"}, "the header names no architecture with a config; expected both."),
        (
            {"version": 1, "architecture": "lenet-5", "config": {"colour": "red"}},
            "architecture 'lenet-5' cannot be built from its config: "
            "LeNet5.__init__() got an unexpected keyword argument 'colour'",
        ),
        (
            {"version": 1, "architecture": "wide-resnet", "config": {"depth": 3}},
            "WideResNet: depth is 3 and widen is 10; "
            "expected a depth of 4 plus a positive multiple of 6 (such as 28), and widen >= 1.",
        ),
        (
            {"version": 1, "architecture": "sequential"},
            "the description of the layers is a NoneType; expected a list.",
        ),
    ],
)
def test_a_wrong_header_is_refused(saved: Path, header: object, message: str) -> None:
    rewrite(saved, header=header)
    assert refusal(saved) == message


def test_an_unknown_architecture_is_refused(saved: Path) -> None:
    rewrite(saved, header={"version": 1, "architecture": "alexnet", "config": {}})
    with pytest.raises(UnsupportedModelError) as caught:
        load(saved)
    assert str(caught.value).startswith(f"{saved}: architecture 'alexnet' is unknown; known are ")


def test_missing_tensors_are_named(saved: Path) -> None:
    rewrite(saved, drop="layers.3.weight")
    assert refusal(saved) == ("its tensors do not fit its architecture: missing layers.3.weight; left over none.")


def test_a_missing_rule_is_not_guessed(saved: Path) -> None:
    rewrite(saved, drop="layers.3.gate._extra_state")
    assert refusal(saved) == (
        "its tensors do not fit its architecture: missing layers.3.gate._extra_state; left over none."
    )


def test_tensors_left_over_are_named(saved: Path) -> None:
    rewrite(saved, tensors={f"extra{i}": torch.zeros(1) for i in range(5)})
    assert refusal(saved) == (
        "its tensors do not fit its architecture: missing none; left over extra0, extra1, extra2 and 2 more."
    )


def test_a_wrong_shape_is_named(saved: Path) -> None:
    rewrite(saved, tensors={"layers.3.gate.log_alpha": torch.zeros(4)})
    assert refusal(saved) == "layers.3.gate.log_alpha has shape [4]; its architecture expects [5]."


def test_a_huge_architecture_is_refused_before_memory_is_claimed(saved: Path) -> None:
    config = {"inputs": 10**9, "hidden": [10**6, 4], "classes": 3}  # 4 PB of weights
    rewrite(saved, header={"version": 1, "architecture": "lenet-300-100", "config": config})
    assert refusal(saved) == "layers.1.bias has shape [5]; its architecture expects [1000000]."


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused_in_a_file(saved: Path, value: float) -> None:
    rewrite(saved, tensors={"layers.1.weight": torch.full((5, 6), value)})
    assert refusal(saved) == "layers.1.weight contains NaN or Inf; the training that wrote it had diverged."


def test_unreadable_gate_constants_are_refused(saved: Path) -> None:
    rewrite(saved, tensors={"layers.1.gate._extra_state": torch.zeros(3, dtype=torch.uint8)})
    assert refusal(saved) == (
        "Gate: the stored constants are unreadable; expected JSON with beta, gamma, zeta and rule. "
        "Save the checkpoint again."
    )


def test_integers_in_place_of_weights_are_refused(saved: Path) -> None:
    rewrite(saved, tensors={"layers.1.weight": torch.zeros(5, 6, dtype=torch.int32)})
    assert refusal(saved) == "layers.1.weight is of torch.int32; expected a floating-point tensor."


def test_non_finite_weights_are_not_saved(tmp_path: Path) -> None:
    model = LeNet300(inputs=6, hidden=(5, 4), classes=3)
    with torch.no_grad():
        model.layers[3].gate.log_alpha[0] = float("nan")
    with pytest.raises(UnsupportedModelError) as caught:
        save(model, tmp_path / "m")
    assert str(caught.value) == (
        "layers.3.gate.log_alpha contains NaN or Inf; the model is not saved. Look for a diverged training."
    )
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_no_header_can_describe_is_not_saved(tmp_path: Path) -> None:
    class Unknown(nn.Module):
        pass

    with pytest.raises(UnsupportedModelError) as caught:
        save(Unknown(), tmp_path / "m")
    assert str(caught.value).endswith(
        "Unknown is neither a registered architecture nor an nn.Sequential; "
        "register the class (register_architecture) and give it a config."
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "architecture 'lenet-300-100': expected an attribute config, a dict; found None."),
        (
            {"hidden": {1}},
            "architecture 'lenet-300-100': its config is not JSON-able (Object of type set is not JSON serializable).",
        ),
    ],
)
def test_a_config_that_cannot_be_stored_is_refused(config: object, message: str, tmp_path: Path) -> None:
    model = LeNet300(inputs=6, hidden=(5, 4), classes=3)
    model.config = config  # type: ignore[assignment]
    with pytest.raises(UnsupportedModelError) as caught:
        save(model, tmp_path / "m")
    assert str(caught.value) == message


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError) as caught:
        save(LeNet300(inputs=6, hidden=(5, 4), classes=3), tmp_path / "no folder" / "m")
    assert str(caught.value).startswith(f"{tmp_path / 'no folder' / 'm'}: cannot be written (")
    assert list(tmp_path.iterdir()) == []


def test_an_old_file_survives_a_failed_write(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def fail(tensors: object, filename: Path, metadata: object) -> None:
        filename.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(ModelFileError, match=r"cannot be written \(No space left on device\)\.$"):
        save(LeNet300(inputs=6, hidden=(5, 4), classes=3), saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


# --- attached gates -------------------------------------------------------------------------------------------------


@register_architecture("test-residual")
class Residual(nn.Module):
    """A residual branch of fully connected layers, for attached gates of three kinds."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.config = {"width": width}
        self.stem, self.up, self.down = nn.Linear(4, width), nn.Linear(width, 8), nn.Linear(8, width)
        self.scale = nn.Parameter(torch.ones(width))  # a parameter of the root, so that attaching changes its class
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.scale
        logits: Tensor = self.head(x + self.down(torch.relu(self.up(x))))
        return logits


def attached(make: type[nn.Module] = Residual) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = make() if make is Residual else nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(5, 4)
    for gate in attach(model, "auto", x, options=GateSpec(rule="median")):
        with torch.no_grad():
            gate.log_alpha.normal_(0, 2)
    return model.eval(), x


@pytest.mark.parametrize("make", [Residual, nn.Sequential])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_attached_gates_come_back_with_the_model_and_need_no_trace(make, is_frozen, tmp_path: Path) -> None:
    model, x = attached(make)
    if is_frozen:
        freeze(model)
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert torch.equal(again(x), model(x))
    assert report(again) == report(model)
    before, after = gates_in(model), gates_in(again)
    assert before is not None
    assert after is not None
    assert after.spec == before.spec
    assert after.places == before.places
    if not is_frozen:
        expected = TargetCost(model, 0.5, 10).expected()
        assert TargetCost(again, 0.5, 10).expected() == expected
        again.train()
        again(x).sum().backward()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda gates: gates.pop("spec"), "'spec'"),
        (lambda gates: gates["places"][0].update(kind="rows"), "kind 'rows' is unknown"),
        (lambda gates: gates["places"][0].update(size=7), "axis 1 of down.weight has length 8, not 7"),
        (lambda gates: gates["places"][0]["points"][0].update(axis=2), "down.weight has no axis 2"),
        (lambda gates: gates["places"][0]["points"][0].update(role="by"), "role 'by' is unknown"),
        (lambda gates: gates["places"][0]["points"][0].update(tensor="no.weight"), "Residual has no attribute `no`"),
        (lambda gates: gates["costs"]["macs"].append([1.0, [9]]), "a cost names a gate vector beyond the 3 there are"),
        (
            lambda gates: gates["spec"].update(rule="best"),
            "evaluation rule is 'best'; expected one of paper, median, top-k.",
        ),
    ],
)
def test_a_damaged_description_of_gates_is_refused(change, reason: str, tmp_path: Path) -> None:
    model, _ = attached()
    path = tmp_path / "m.safetensors"
    save(model, path)
    with safetensors.safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["l0runtime"])
    change(header["gates"])
    rewrite(path, header=header)
    assert refusal(path) == f"the description of its gates is malformed ({reason})."


def test_a_model_with_attached_gates_of_an_unknown_class_is_named_by_its_own_class(tmp_path: Path) -> None:
    class Unknown(Residual):
        pass

    model = Unknown()
    attach(model, "auto", torch.randn(5, 4))
    with pytest.raises(UnsupportedModelError, match="Unknown is neither a registered architecture"):
        save(model, tmp_path / "m.safetensors")


def test_an_input_shape_is_kept_in_the_header_and_must_be_one(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(LeNet300(inputs=12, hidden=(6, 4), classes=3), path, input_shape=(3, 4))
    with safetensors.safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["l0runtime"])["input_shape"] == [3, 4]
    assert isinstance(load(path), LeNet300)
    for shape in ((), (0, 3), (2.0,)):
        with pytest.raises(UnsupportedModelError) as caught:
            save(LeNet300(), path, input_shape=shape)
        assert str(caught.value) == (
            f"input_shape is {shape}; expected whole numbers of at least 1, without the batch."
        )
