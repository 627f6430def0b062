"""Is every layer of the table rebuilt as it was, and everything else refused?"""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from l0runtime.errors import ModelFileError, UnsupportedModelError
from l0runtime.gates import Gate, GatedConv2d, GatedLinear
from l0runtime.gates.layer_table import LAYERS, build_layers, describe_layers

IMAGE, ROWS, SERIES = (2, 4, 9, 8), (3, 6), (2, 4, 11)
# One instance per layer class, with settings that are not its defaults, and the shape of an input.
CASES: list[tuple[nn.Module, tuple[int, ...]]] = [
    (GatedLinear(6, 5, bias=False), ROWS),
    (GatedLinear(6, 5, side="output", gate_bias=False, drop_rate=0.3, rule="median", per_example=True), ROWS),
    (GatedConv2d(4, 6, (3, 2), (2, 1), (1, 0), 2, 2, False, drop_rate=0.2, rule="top-k"), IMAGE),
    (GatedConv2d(4, 6, 3, side="input", gate_bias=False), IMAGE),
    (Gate(4, drop_rate=0.9, per_example=True), IMAGE),
    (nn.Linear(6, 5, bias=False), ROWS),
    (nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular"), SERIES),
    (nn.Conv2d(4, 6, (3, 1), groups=2, padding="same", bias=False), IMAGE),
    (nn.BatchNorm1d(6, eps=0.5, affine=False), ROWS),
    (nn.BatchNorm2d(4, eps=0.5, momentum=None), IMAGE),
    (nn.LayerNorm((9, 8), eps=0.5, elementwise_affine=False), IMAGE),
    (nn.MaxPool2d((3, 2), 2, 1, 1, ceil_mode=True), IMAGE),
    (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), IMAGE),
    (nn.AdaptiveAvgPool2d((3, None)), IMAGE),
    (nn.Flatten(2), IMAGE),
    (nn.Dropout(0.3), ROWS),
    (nn.Dropout2d(0.3), IMAGE),
    (nn.Identity(), ROWS),
    (nn.ReLU(), ROWS),
    (nn.ReLU6(), ROWS),
    (nn.LeakyReLU(0.3), ROWS),
    (nn.ELU(0.3), ROWS),
    (nn.GELU("tanh"), ROWS),
    (nn.SiLU(), ROWS),
    (nn.Sigmoid(), ROWS),
    (nn.Tanh(), ROWS),
    (nn.Softmax(0), ROWS),
]


@pytest.mark.parametrize(("layer", "shape"), CASES, ids=lambda value: str(value).replace("\n", ""))
def test_a_layer_is_rebuilt_with_its_settings(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    entries = json.loads(json.dumps(describe_layers(nn.Sequential(layer))))
    rebuilt = build_layers(entries)
    rebuilt.load_state_dict(nn.Sequential(layer).state_dict())
    assert str(rebuilt[0]) == str(layer)
    x = torch.randn(shape)
    torch.testing.assert_close(rebuilt.eval()(x), layer.eval()(x), rtol=0, atol=0)


def test_every_layer_of_the_table_has_a_case() -> None:
    assert {type(layer) for layer, _ in CASES} == set(LAYERS)


def test_nested_sequences_and_names_are_kept() -> None:
    model = nn.Sequential()
    model.add_module("body", nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    model.add_module("head", nn.Linear(3, 1))
    rebuilt = build_layers(json.loads(json.dumps(describe_layers(model))))
    assert list(rebuilt.state_dict()) == ["body.0.weight", "body.0.bias", "head.weight", "head.bias"]


def test_an_unknown_layer_is_named_with_its_place() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.LSTM(2, 2)))
    with pytest.raises(
        UnsupportedModelError, match=r"^layer 1\.1 is a LSTM, which a checkpoint cannot describe; known"
    ):
        describe_layers(model)


def test_a_subclass_of_a_known_layer_is_refused() -> None:
    """It may compute anything: rebuilding its parent would silently change the function."""

    class Doubled(nn.ReLU):
        pass

    with pytest.raises(UnsupportedModelError, match=r"^layer 0 is a .*Doubled"):
        describe_layers(nn.Sequential(Doubled()))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"0": 1}, "the description of the layers is a dict; expected a list."),
        (["ReLU"], "layer 0 of the description is malformed: ReLU."),
        ([{"kind": 3, "name": "0"}], "layer 0 of the description is malformed: {'kind': 3, 'name': '0'}."),
        (
            [{"kind": "Teleport", "name": "a", "config": {}}],
            "layer a is of the unknown kind 'Teleport'; a newer version may know it.",
        ),
        (
            [{"kind": "Flatten", "name": "a", "config": {"start_dim": 1}}],
            "layer a (Flatten) has the settings ['start_dim']; expected ['end_dim', 'start_dim'].",
        ),
        (
            [
                {
                    "kind": "Sequential",
                    "name": "s",
                    "layers": [
                        {
                            "kind": "Linear",
                            "name": "a",
                            "config": {"in_features": "x", "out_features": 1, "bias": True},
                        }
                    ],
                }
            ],
            "layer s.a (Linear) cannot be built from its settings: ",
        ),
    ],
)
def test_a_malformed_description_is_refused(entries: object, message: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        build_layers(entries)
    assert str(caught.value).startswith(message)
    assert message.endswith(": ") or str(caught.value) == message
