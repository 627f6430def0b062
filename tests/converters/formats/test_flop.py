"""Checkpoints of FLOP compute what the original's masked layers compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from format_agreement import assert_same_as_masked, recognised, resave

from benchmarks.sources.made import Made
from benchmarks.sources.masked import flop
from converters.sources import GatedModel, SourceOptions, load_source
from l0runtime.errors import ModelFileError, OptionError


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return flop.make(tmp_path, True)


def load(made: Made, **extra: str) -> GatedModel:
    return load_source(made.path, SourceOptions(flop.build_small, made.inputs, extra))


def test_components_inputs_and_embeddings_compute_what_the_masked_layers_compute(made: Made) -> None:
    assert recognised(made.path) == "flop"
    gated = assert_same_as_masked(made)
    layers = ["embed.emb_layers.0", "embed.emb_layers.1", "embed.emb_layers.2", "up", "down", "out"]
    assert [group.layer for group in gated.gates] == layers
    for group in gated.gates:
        name = group.layer.replace("emb_layers", "masks") + (
            ".log_alpha" if "emb" in group.layer else ".mask.log_alpha"
        )
        log_alpha = torch.load(made.path, weights_only=True)[name]
        expected = torch.sigmoid(log_alpha + 2.3979).sum().item()  # T = 1: -ln(0.1 / 1.1)
        assert group.units - group.kept == round(group.units - expected)


def test_the_temperature_is_an_option(made: Made) -> None:
    kept = [group.kept for group in load(made).gates]
    assert [group.kept for group in load(made, temperature="0.3").gates] != kept


def test_gates_without_their_layer_are_named(made: Made) -> None:
    resave(made.path, lambda state: state.pop("out.weight"))
    with pytest.raises(ModelFileError, match=r"out\.mask\.log_alpha has no matrix out\.weight beside it"):
        load(made)
    resave(made.path, lambda state: state.pop("embed.emb_layers.1.weight"))
    with pytest.raises(ModelFileError, match=r"has no matrix embed\.emb_layers\.1\.weight or embed\.out_layers\.1\."):
        load(made)


def test_gates_of_the_wrong_length_are_named(made: Made) -> None:
    resave(made.path, lambda state: state.update({"up.mask.log_alpha": torch.zeros(3)}))
    with pytest.raises(
        ModelFileError, match=r"up\.mask\.log_alpha has shape \[3\]; expected \[8\], one gate for each rank"
    ):
        load(made)


def test_without_the_architecture_the_message_says_how_to_name_it(made: Made) -> None:
    with pytest.raises(OptionError) as caught:
        load_source(made.path, SourceOptions())
    assert str(caught.value) == (
        f"{made.path}: holds parameters alone. Say which model they belong to: "
        "model=package.module:factory, or --model on the command line."
    )
