"""inspect says what is in a checkpoint, in an ONNX file and in a compact one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from small_models import change_weight, make_mlp

from converters import convert, inspect
from l0runtime.errors import ModelFileError, OptionError
from l0runtime.gates import LeNet300, save


def test_an_onnx_file_shows_what_a_conversion_would_remove(mlp: Path) -> None:
    found = inspect(mlp)
    assert (found.format, found.parameters) == ("onnx", 63)
    assert [(c.before.layer, c.before.outputs, c.after and c.after.outputs) for c in found.widths] == [
        ("fc1", 6, 4),
        ("fc2", 3, 3),
    ]
    assert found.explain("hidden", 1) == "hidden[1]: cut from 6 to 4"
    assert found.explain("y", 1) == "y[1]: every index is live"


def test_channels_that_are_exactly_zero_are_counted_per_layer(tmp_path: Path) -> None:
    def close_two(array: np.ndarray) -> None:
        array[:, [1, 3]] = 0

    onnx.save(change_weight(make_mlp((1.0,) * 6), "fc2.weight", close_two), tmp_path / "zeros.onnx")
    (zeros,) = inspect(tmp_path / "zeros.onnx").zeros
    assert (zeros.layer, zeros.inputs, zeros.outputs) == ("fc2", 2, 0)


def test_dead_indices_that_stay_are_explained_the_costliest_first(tmp_path: Path) -> None:
    # the first layer's dead inputs are the model's own inputs, which nobody may cut
    def close_inputs(array: np.ndarray) -> None:
        array[:, [0, 2]] = 0

    onnx.save(change_weight(make_mlp(), "fc1.weight", close_inputs), tmp_path / "inputs.onnx")
    found = inspect(tmp_path / "inputs.onnx")
    assert [axis.cost for axis in found.kept] == sorted((axis.cost for axis in found.kept), reverse=True)


def test_a_compact_file_tells_what_was_recorded(mlp: Path, tmp_path: Path) -> None:
    report = convert(mlp, tmp_path / "out.onnx")
    found = inspect(tmp_path / "out.onnx")
    assert (found.format, found.parameters) == ("compact", 39)
    assert [(c.before.outputs, c.after and c.after.outputs) for c in found.widths] == [(6, 4), (3, 3)]
    assert found.conversion["parameters"] == [63, 39]
    assert found.conversion["verification"]["limit_reason"] == report.verification.limit_reason
    with pytest.raises(OptionError) as caught:
        found.explain("y", 1)
    assert str(caught.value) == (
        f"{tmp_path / 'out.onnx'}: only an ONNX file that is not converted yet has a plan to explain."
    )


def test_a_compact_file_whose_metadata_was_damaged_still_opens(mlp: Path, tmp_path: Path) -> None:
    convert(mlp, tmp_path / "out.onnx")
    model = onnx.load(tmp_path / "out.onnx")
    for entry in model.metadata_props:
        if entry.key == "l0runtime.widths":
            entry.value = "[[1, 2"
        if entry.key == "l0runtime.gates":
            entry.value = '[{"layer": 3}]'
    onnx.save(model, tmp_path / "out.onnx")
    assert inspect(tmp_path / "out.onnx").widths == ()


def test_a_checkpoint_shows_its_gates_and_their_rule(tmp_path: Path) -> None:
    net = LeNet300(inputs=4, hidden=(3, 2), classes=2, rule="median")
    with torch.no_grad():
        net.layers[1].gate.log_alpha.copy_(torch.tensor([-9.0, -9, 9, 9]))
    save(net, tmp_path / "net.safetensors")
    found = inspect(tmp_path / "net.safetensors")
    first = found.gates[0]
    assert (first.layer, first.units, first.kept, first.rule) == ("layers.1", 4, 2, "median")
    # weights 12 + 6 + 4, biases 3 + 2 + 2, gates 4 + 3 + 2
    assert (found.format, found.parameters) == ("l0runtime", 38)


def test_the_json_is_plain_and_the_text_names_everything(mlp: Path) -> None:
    found = inspect(mlp)
    plain = json.loads(json.dumps(found.to_json()))
    assert plain["widths"][0]["after"]["outputs"] == 4
    assert "plan" not in plain
    assert str(found).splitlines()[0] == f"{mlp}: format onnx, 63 parameters"
    assert "6 -> 4" in str(found)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        inspect(tmp_path / "nothing.onnx")
