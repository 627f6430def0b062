"""convert takes every kind of source to a verified file, and leaves nothing behind when it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from small_models import GATES, change_weight, make_mlp
from torch import nn

import converters.compaction
from converters import convert, output_files
from converters.compaction import Compaction, Widths
from l0runtime.errors import (
    InputError,
    ModelFileError,
    NoGateError,
    OptionError,
    UnsupportedModelError,
    VerificationError,
)
from l0runtime.gates import Gate, GatedLinear, LeNet5, save

X = np.random.default_rng(11).standard_normal((4, 5)).astype(np.float32)


def save_onnx(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def run(path: Path, x: np.ndarray = X) -> np.ndarray:
    session = ort.InferenceSession(str(path))
    output: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return output


def by_hand(x: np.ndarray, gates: tuple[float, ...] = GATES) -> np.ndarray:
    """The formula of small_models.make_mlp in float64."""
    w = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in make_mlp(gates).graph.initializer}
    hidden = np.maximum(w["gate"] * (x @ w["fc1.weight"].T + w["fc1.bias"]), 0)
    return hidden @ w["fc2.weight"].T + w["fc2.bias"]


def test_an_onnx_file_becomes_a_smaller_one_that_computes_the_same(mlp: Path, tmp_path: Path) -> None:
    report = convert(mlp, tmp_path / "out.onnx")
    # float32 sums of 6 products against float64
    np.testing.assert_allclose(run(tmp_path / "out.onnx"), by_hand(X), rtol=1e-5, atol=1e-6)
    shapes = {t.name: list(t.dims) for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert sorted(map(tuple, shapes.values())) == [(3,), (3, 4), (4,), (4, 5)]
    # 6 * 5 + 6 + 6 gates + 3 * 6 + 3, and 4 * 5 + 4 + 3 * 4 + 3
    assert (report.before.parameters, report.after.parameters) == (63, 39)
    assert (report.before.macs, report.after.macs) == (6 * 5 + 3 * 6, 4 * 5 + 3 * 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mlp.onnx", "out.onnx"]


def test_the_same_input_gives_the_same_bytes(mlp: Path, tmp_path: Path) -> None:
    convert(mlp, tmp_path / "a.onnx")
    convert(mlp, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_the_file_says_how_it_was_made(mlp: Path, tmp_path: Path) -> None:
    report = convert(mlp, tmp_path / "out.onnx")
    entries = {e.key: e.value for e in onnx.load(tmp_path / "out.onnx").metadata_props}
    assert entries["l0runtime.source_format"] == "onnx"
    assert json.loads(entries["l0runtime.parameters"]) == [63, 39]
    assert json.loads(entries["l0runtime.widths"]) == [["fc1", 5, 6, 5, 4], ["fc2", 6, 3, 4, 3]]
    verification = json.loads(entries["l0runtime.verification"])
    assert verification["decided_by"] == "float32"
    assert verification["float32"] == float(f"{report.verification.largest:.1e}")


def test_the_report_is_written_beside_it_as_json(mlp: Path, tmp_path: Path) -> None:
    report = convert(mlp, tmp_path / "out.onnx", report=tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert written == report.to_json()
    assert set(written["seconds"]) == {"load", "export", "compact", "verify", "report"}


def test_a_fully_closed_layer_leaves_a_constant_output(tmp_path: Path) -> None:
    closed = (0.0,) * 6
    source = save_onnx(make_mlp(closed), tmp_path / "closed.onnx")
    convert(source, tmp_path / "out.onnx")
    bias = onnx.numpy_helper.to_array(make_mlp(closed).graph.initializer[4])
    np.testing.assert_array_equal(run(tmp_path / "out.onnx"), np.broadcast_to(bias, (4, 3)))


def test_models_too_large_for_protobuf_keep_their_weights_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_files, "_LARGEST_EMBEDDED_BYTES", 100)
    gates = (1.0, 0.0) * 60
    model = make_mlp(gates)
    (tmp_path / "large").mkdir()
    onnx.save(model, tmp_path / "large" / "in.onnx", save_as_external_data=True, location="in.data", size_threshold=256)
    convert(tmp_path / "large" / "in.onnx", tmp_path / "out.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["large", "out.onnx", "out.onnx.data"]
    # float32 sums of 60 products against float64
    np.testing.assert_allclose(run(tmp_path / "out.onnx"), by_hand(X, gates), rtol=1e-5, atol=1e-5)


def test_a_model_without_gates_or_zeros_is_refused(tmp_path: Path) -> None:
    model = make_mlp((1.0,) * 6)
    source = save_onnx(model, tmp_path / "dense.onnx")
    with pytest.raises(NoGateError) as caught:
        convert(source, tmp_path / "out.onnx")
    assert str(caught.value) == (
        f"{source}: no gate in the model is closed and no channel is exactly zero, so nothing can be removed. "
        "Train it with gates (l0runtime.gates), or set pruned weights to exact zeros."
    )
    assert [p.name for p in tmp_path.iterdir()] == ["dense.onnx"]


def test_nan_in_a_weight_is_named(tmp_path: Path) -> None:
    def poison(array: np.ndarray) -> None:
        array[0, :2] = np.nan

    source = save_onnx(change_weight(make_mlp(), "fc2.weight", poison), tmp_path / "nan.onnx")
    with pytest.raises(UnsupportedModelError) as caught:
        convert(source, tmp_path / "out.onnx")
    assert str(caught.value) == (
        "fc2.weight: 2 of 18 values are NaN; expected finite numbers. "
        "The training diverged or the file is damaged; take an earlier checkpoint."
    )
    assert [p.name for p in tmp_path.iterdir()] == ["nan.onnx"]


def test_a_wrong_compaction_is_never_written(mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = converters.compaction.compact

    def wrong(model: ir.Model, widths: Widths | None = None) -> Compaction:
        result = right(model, widths)
        weight = result.model.graph.initializers["fc2.bias"]
        assert weight.const_value is not None
        weight.const_value = ir.Tensor(weight.const_value.numpy() + 1, name="fc2.bias")
        return result

    monkeypatch.setattr(converters.compaction, "compact", wrong)
    (tmp_path / "out.onnx").write_text("what was there before")
    with pytest.raises(
        VerificationError, match=r"^output 'y' on x .* \(in float64, where only the order of sums may differ"
    ):
        convert(mlp, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_text() == "what was there before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mlp.onnx", "out.onnx"]


@pytest.mark.parametrize("size", [0, 1, 100, 300])
def test_a_truncated_onnx_file_is_refused(mlp: Path, tmp_path: Path, size: int) -> None:
    mlp.write_bytes(mlp.read_bytes()[:size])
    with pytest.raises(ModelFileError, match=f"^{mlp}: "):
        convert(mlp, tmp_path / "out.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["mlp.onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "a:b"}, "{source}: an ONNX file holds its own graph and inputs; leave out the model."),
        (
            {"example_inputs": (1,)},
            "{source}: an ONNX file holds its own graph and inputs; leave out the example inputs.",
        ),
        ({"opset": 18}, "{source}: an ONNX file is not exported again; leave out opset."),
        ({"example_kwargs": {"x": 1}}, "{source}: example_kwargs are for a live module; give example_inputs in order."),
        ({"gated_output": "g.onnx"}, "{source}: is the gated model itself; leave out the gated output."),
    ],
)
def test_options_without_meaning_are_refused(
    mlp: Path, tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(OptionError) as caught:
        convert(mlp, tmp_path / "out.onnx", **arguments)  # type: ignore[arg-type]
    assert str(caught.value) == message.format(source=mlp)


def test_a_live_module_is_converted_and_given_back_in_the_mode_it_was_in(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), Gate(8), nn.ReLU(), nn.Linear(8, 3))
    gate = net[1]
    assert isinstance(gate, Gate)
    with torch.no_grad():
        gate.log_alpha.copy_(torch.tensor([-9.0, 9, 0, -9, 9, 0.5, -9, 1]))
    net.train()
    net[3].eval()
    report = convert(net, tmp_path / "out.onnx", example_inputs=(torch.randn(2, 5),), gated_output=tmp_path / "g.onnx")
    assert [module.training for module in net] == [True, True, True, False]
    assert [(g.layer, g.units, g.kept, g.rule) for g in report.gates] == [("1", 8, 5, "paper")]
    assert report.verification.torch is not None
    net.eval()
    expected = net(torch.from_numpy(X)).detach().numpy()
    for path in (tmp_path / "out.onnx", tmp_path / "g.onnx"):
        np.testing.assert_allclose(run(path), expected, rtol=1e-5, atol=1e-6)  # float32 sums of 8 products
    assert [c.after and c.after.outputs for c in report.widths] == [5, 3]


def test_a_live_module_with_all_gates_closed_is_converted(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), GatedLinear(4, 3)).eval()
    with torch.no_grad():
        net[2].gate.log_alpha.fill_(-9)
    convert(net, tmp_path / "out.onnx", example_inputs=(torch.randn(2, 5),))
    np.testing.assert_array_equal(run(tmp_path / "out.onnx"), np.broadcast_to(net[2].bias.detach().numpy(), (4, 3)))


def test_a_live_module_takes_no_options_of_files(tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        convert(nn.Linear(2, 2), tmp_path / "out.onnx", example_inputs=(torch.ones(1, 2),), model="a:b")
    assert str(caught.value) == "Linear: a live module takes no model; leave it out."


@pytest.mark.parametrize(
    ("example", "found"),
    [
        (torch.ones(2, 3), "float32[2, 3] (RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x3 and 5x4))"),
        (
            torch.ones(2, 5, dtype=torch.int64),
            "int64[2, 5] (RuntimeError: mat1 and mat2 must have the same dtype, but got Long and Float)",
        ),
    ],
)
def test_inputs_of_a_wrong_shape_or_dtype_are_named(tmp_path: Path, example: torch.Tensor, found: str) -> None:
    with pytest.raises(InputError) as caught:
        convert(nn.Sequential(nn.Linear(5, 4)), tmp_path / "out.onnx", example_inputs=(example,))
    assert str(caught.value) == (
        f"Sequential: does not run on its example inputs {found}. Give inputs of the shape and dtype that it expects."
    )
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_lenet_5_is_converted(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = LeNet5()
    generator = torch.Generator().manual_seed(2)
    for module in net.modules():
        if isinstance(module, Gate):
            with torch.no_grad():
                module.log_alpha.copy_(torch.randn(module.size, generator=generator) * 3 - 2)
    save(net, tmp_path / "lenet5.safetensors")
    report = convert(tmp_path / "lenet5.safetensors", tmp_path / "out.onnx")
    images = np.random.default_rng(3).random((7, 1, 28, 28), np.float32)
    expected = net.eval()(torch.from_numpy(images)).detach().numpy()
    found = run(tmp_path / "out.onnx", images)
    # float32 sums of up to 800 products
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-6 * np.abs(expected).max())
    widths = {change.before.layer: change.after for change in report.widths}
    kept = {group.layer: group.kept for group in report.gates}
    assert widths["conv1"] is not None
    assert widths["conv1"].outputs == kept["conv1"]
    assert widths["fc2"] is not None
    assert widths["fc2"].inputs == kept["fc2"]
    assert report.notes == ("the example input, 1x1x28x28, was found by trial; --input SHAPE sets another",)
