"""Checkpoints of the paper's own code give the paper's own outputs."""

from __future__ import annotations

import gzip
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from converters import convert
from converters.formats.amlab import SOURCE
from converters.sources import Candidate, GatedModel, SourceOptions
from l0runtime.errors import ModelFileError, OptionError, UnsupportedModelError

SHARED = Path(__file__).parents[4] / "shared"
CHECKPOINTS, MNIST = SHARED / "checkpoints" / "amlab", SHARED / "data" / "mnist"


def evaluate_gates(log_alpha: Tensor) -> Tensor:
    """The authors' L0Dense.sample_z in evaluation: F.hardtanh(sigmoid(a) * 1.2 - 0.1, 0, 1)."""
    return F.hardtanh(torch.sigmoid(log_alpha) * 1.2 - 0.1, 0, 1)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape)


def mlp_state() -> OrderedDict[str, Tensor]:
    torch.manual_seed(5)
    state: OrderedDict[str, Tensor] = OrderedDict()
    for layer, (inputs, outputs) in zip((0, 2, 4), ((6, 5), (5, 4), (4, 3)), strict=True):
        state[f"output.{layer}.weights"] = draw(inputs, outputs)
        state[f"output.{layer}.qz_loga"] = draw(inputs) * 3
        state[f"output.{layer}.bias"] = draw(outputs)
    return state


def run_mlp(state: OrderedDict[str, Tensor], x: Tensor) -> Tensor:
    """The authors' L0MLP.forward."""
    for layer in (0, 2, 4):
        x = (x * evaluate_gates(state[f"output.{layer}.qz_loga"])) @ state[f"output.{layer}.weights"]
        x = x + state[f"output.{layer}.bias"]
        x = x.relu() if layer < 4 else x
    return x


def wide_resnet_state() -> OrderedDict[str, Tensor]:
    torch.manual_seed(6)
    state: OrderedDict[str, Tensor] = OrderedDict()

    def batch_norm(name: str, width: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = draw(width), draw(width)
        state[f"{name}.running_mean"], state[f"{name}.running_var"] = draw(width), torch.rand(width) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    state["conv1.weight"] = draw(16, 3, 3, 3)
    width_in = 16
    for group, width in enumerate((16, 32, 64), start=1):
        prefix = f"block{group}.layer.0"
        batch_norm(f"{prefix}.bn1", width_in)
        state[f"{prefix}.conv1.weights"] = draw(width, width_in, 3, 3)
        state[f"{prefix}.conv1.qz_loga"] = draw(width) * 3
        batch_norm(f"{prefix}.bn2", width)
        state[f"{prefix}.conv2.weight"] = draw(width, width, 3, 3)
        if width_in != width:
            state[f"{prefix}.convShortcut.weight"] = draw(width, width_in, 1, 1)
        width_in = width
    batch_norm("bn", 64)
    state["fcout.weight"], state["fcout.bias"] = draw(64, 10), draw(10)
    return state


def run_wide_resnet(state: OrderedDict[str, Tensor], x: Tensor) -> Tensor:
    """The authors' L0WideResNet.forward for one block per group."""

    def batch_norm(name: str, value: Tensor) -> Tensor:
        parameters = [state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(value, *parameters)

    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for group in (1, 2, 3):
        prefix, stride = f"block{group}.layer.0", 1 if group == 1 else 2
        active = batch_norm(f"{prefix}.bn1", x).relu()
        out = F.conv2d(active, state[f"{prefix}.conv1.weights"], padding=1)
        out = out * evaluate_gates(state[f"{prefix}.conv1.qz_loga"]).view(1, -1, 1, 1)
        out = F.conv2d(batch_norm(f"{prefix}.bn2", out).relu(), state[f"{prefix}.conv2.weight"], None, stride, 1)
        shortcut = state.get(f"{prefix}.convShortcut.weight")
        x = out + (x if shortcut is None else F.conv2d(active, shortcut, None, stride))
    pooled = F.avg_pool2d(batch_norm("bn", x).relu(), 8).view(-1, 64)
    return pooled @ state["fcout.weight"] + state["fcout.bias"]


def save(content: object, tmp_path: Path) -> Candidate:
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    return Candidate(tmp_path / "checkpoint.pth.tar")


def load(content: object, tmp_path: Path, **options: str) -> GatedModel:
    return SOURCE.load(save(content, tmp_path), SourceOptions(extra=options))


def outputs(gated: GatedModel, x: Tensor) -> Tensor:
    assert gated.module is not None
    with torch.no_grad():
        output: Tensor = gated.module(x)
    return output


def test_an_mlp_computes_what_the_authors_code_computes(tmp_path: Path) -> None:
    state, x = mlp_state(), draw(9, 6)
    found = outputs(load({"state_dict": state}, tmp_path), x)
    # float32 sums of 6 products in another order
    torch.testing.assert_close(found, run_mlp(state, x), rtol=1e-5, atol=1e-5)


def test_a_wide_resnet_computes_what_the_authors_code_computes(tmp_path: Path) -> None:
    state, x = wide_resnet_state(), draw(2, 3, 32, 32)
    gated = load({"state_dict": state}, tmp_path)
    expected = run_wide_resnet(state, x)
    # ten layers of float32 sums of up to 576 products
    torch.testing.assert_close(outputs(gated, x), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert [group.layer for group in gated.gates] == ["blocks.0.conv1", "blocks.1.conv1", "blocks.2.conv1"]


def test_the_prefix_of_multi_gpu_training_is_dropped(tmp_path: Path) -> None:
    state, x = mlp_state(), draw(3, 6)
    prefixed = OrderedDict((f"module.{name}", tensor) for name, tensor in state.items())
    torch.testing.assert_close(outputs(load({"state_dict": prefixed}, tmp_path), x), run_mlp(state, x))


def test_the_moving_average_is_taken_and_corrected_for_its_start(tmp_path: Path) -> None:
    state, x = mlp_state(), draw(3, 6)
    decay, steps = 0.9, 5.0
    average = OrderedDict((name, tensor + 0.1) for name, tensor in state.items())
    content = {
        "state_dict": state,
        "avg_params": [tensor * (1 - decay**steps) for tensor in average.values()],
        "beta_ema": decay,
        "steps_ema": steps,
    }
    gated = load(content, tmp_path)
    torch.testing.assert_close(outputs(gated, x), run_mlp(average, x))
    assert gated.notes == ("moving average of the parameters (beta 0.9, 5 steps)",)
    last = load(content, tmp_path, parameters="last")
    torch.testing.assert_close(outputs(last, x), run_mlp(state, x))
    assert last.notes == ("parameters of the last step, not their moving average",)


def test_an_average_that_is_not_there_cannot_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"but the file holds no average; leave the option out\.$"):
        load({"state_dict": mlp_state(), "beta_ema": 0.0}, tmp_path, parameters="average")


@pytest.mark.parametrize("options", [{"parameters": "best"}, {"rule": "median"}])
def test_an_unknown_option_is_refused(tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(OptionError, match=r"has one option, parameters=average or parameters=last; found "):
        load({"state_dict": mlp_state()}, tmp_path, **options)


def test_an_average_of_other_shapes_is_refused(tmp_path: Path) -> None:
    content = {"state_dict": mlp_state(), "avg_params": [torch.ones(2)], "beta_ema": 0.9, "steps_ema": 1.0}
    with pytest.raises(ModelFileError, match="avg_params does not match the 9 parameters of state_dict"):
        load(content, tmp_path)


def test_a_missing_parameter_is_named(tmp_path: Path) -> None:
    state = mlp_state()
    del state["output.2.bias"]
    with pytest.raises(ModelFileError, match=r"do not fit LeNet300: missing layers\.3\.bias; left over none\.$"):
        load({"state_dict": state}, tmp_path)


def test_a_parameter_left_over_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"do not fit LeNet300: missing none; left over extra\.$"):
        load({"state_dict": mlp_state() | {"extra": torch.ones(2)}}, tmp_path)


def test_gates_of_a_wrong_length_are_named(tmp_path: Path) -> None:
    state = mlp_state() | {"output.2.qz_loga": torch.ones(7)}
    with pytest.raises(ModelFileError, match=r"layers\.3\.gate\.log_alpha has shape \[7\]; LeNet300 expects \[5\]\.$"):
        load({"state_dict": state}, tmp_path)


def test_gates_of_an_unknown_network_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"gates of an unknown network \(first parameter odd\.qz_loga\)"):
        load({"state_dict": {"odd.qz_loga": torch.ones(2)}}, tmp_path)


def test_other_torch_files_are_not_recognised(tmp_path: Path) -> None:
    assert not SOURCE.recognise(save({"state_dict": {"weight": torch.ones(2)}}, tmp_path))
    assert not SOURCE.recognise(save([1, 2], tmp_path))


@pytest.mark.skipif(not CHECKPOINTS.exists() or not MNIST.exists(), reason="needs ../shared/checkpoints and MNIST")
@pytest.mark.parametrize(
    ("name", "options", "kept", "wrong"),
    [
        # figures of the authors' own code on the same files, see the README beside the checkpoints
        ("lenet5.pth.tar", {}, [11, 27, 106, 25], 89),
        ("mlp_300_100_ema.pth.tar", {}, [412, 298, 100], 131),
        ("mlp_300_100_ema.pth.tar", {"parameters": "last"}, [408, 298, 100], 147),
    ],
)
def test_real_checkpoints_err_on_exactly_as_many_test_images_as_in_the_authors_code(
    tmp_path: Path, name: str, options: dict[str, str], kept: list[int], wrong: int
) -> None:
    report = convert(CHECKPOINTS / name, tmp_path / "out.onnx", options=options)
    assert [group.kept for group in report.gates] == kept

    def read(file: str, offset: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress((MNIST / file).read_bytes())[offset:], np.uint8)

    session = ort.InferenceSession(str(tmp_path / "out.onnx"))
    (spec,) = session.get_inputs()
    images = read("t10k-images-idx3-ubyte.gz", 16).reshape(10_000, *spec.shape[1:]).astype(np.float32) / 255
    labels = read("t10k-labels-idx1-ubyte.gz", 8)
    assert int((session.run(None, {spec.name: images})[0].argmax(axis=1) != labels).sum()) == wrong
