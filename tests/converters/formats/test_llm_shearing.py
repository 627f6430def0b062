"""Checkpoints of LLM-Shearing compute what the original's masked LLaMA computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from format_agreement import assert_same, assert_same_as_masked, recognised, resave

from benchmarks.sources.masked import llm_shearing
from converters.sources import GatedModel, SourceOptions, load_source
from l0runtime.errors import ModelFileError, OptionError, UnsupportedModelError


def load(path: Path, **extra: str) -> GatedModel:
    return load_source(path, SourceOptions(extra=extra))


@pytest.mark.parametrize("network", ["", "target"])
def test_a_pruned_llama_computes_what_the_masked_one_computes(tmp_path: Path, network: str) -> None:
    made = llm_shearing.make(tmp_path, True, network)
    assert recognised(made.path) == "llm-shearing"
    gated = assert_same_as_masked(made)
    by_layer = {group.layer: group.kept for group in gated.gates}
    expected = {"hidden": 12, "layer": 2, "block.0.head": 2, "block.1.intermediate": 20} if network else {}
    assert {layer: by_layer[layer] for layer in expected} == expected


def test_a_state_dict_alone_is_read_too(tmp_path: Path) -> None:
    made = llm_shearing.make(tmp_path, True)
    state = torch.load(made.path, weights_only=True)["state"]["model"]
    torch.save(state, tmp_path / "alone.pt")
    with torch.no_grad():
        assert_same(load(tmp_path / "alone.pt"), made.inputs, made.masked(*made.inputs))


def test_a_run_with_a_target_asks_for_it(tmp_path: Path) -> None:
    path = llm_shearing.make(tmp_path, True, "target").path
    with pytest.raises(OptionError) as caught:
        load(path)
    assert str(caught.value) == (
        f"{path}: its run had a target architecture, which decides how many gates close and is not in the file. "
        "Add --set target_hidden=N (of 24)."
    )
    with pytest.raises(OptionError) as caught:
        load(path, target_hidden="25")
    assert str(caught.value) == (f"{path}: option target_hidden=25: expected at most 24, the number of gates.")


def test_epsilon_is_an_option(tmp_path: Path) -> None:
    made = llm_shearing.make(tmp_path, True)
    with torch.no_grad():
        expected = made.masked(*made.inputs)
    with pytest.raises(AssertionError):
        assert_same(load(made.path, eps="0.1"), made.inputs, expected)
    assert load(made.path).notes[0] == "rms_norm_eps 1e-06; the file does not say it, see the option eps"


def without_heads(model: dict[str, torch.Tensor]) -> None:
    del model["model.l0_module.masks.head.z_loga"]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (without_heads, OptionError, "without gates on the heads, their number is not known: --set heads=N."),
        (
            lambda model: model.update({"model.l0_module.masks.vo_head_dim.z_loga": torch.ones(3)}),
            UnsupportedModelError,
            "gates of the kind 'vo_head_dim', which this reader does not know; known are hidden, head, intermediate, "
            "head_layer, mlp, layer. Prune with LLM-Shearing (post_pruning_processing.py) and convert the result.",
        ),
        (
            lambda model: model.update({"model.l0_module.masks.intermediate.z_loga": torch.ones(3, 39)}),
            ModelFileError,
            "the gates do not fit the network of 3 layers, 24 hidden dimensions and 40 neurons. "
            "The file is damaged, or its parts belong to different models.",
        ),
        (
            lambda model: model.pop("model.transformer.wte.weight"),
            ModelFileError,
            "holds gates, but no transformer.wte.weight and blocks of a LLaMA.",
        ),
        (
            lambda model: model.pop("model.transformer.ln_f.weight"),
            ModelFileError,
            "parameters do not fit Llama: missing transformer.ln_f.weight; left over none.",
        ),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path: Path, change: Any, kind: Any, message: str) -> None:
    path = llm_shearing.make(tmp_path, True).path
    resave(path, lambda content: change(content["state"]["model"]))
    with pytest.raises(kind) as caught:
        load(path)
    assert str(caught.value) == f"{path}: {message}"


def test_the_number_of_heads_is_an_option_where_no_head_is_gated(tmp_path: Path) -> None:
    made = llm_shearing.make(tmp_path, True)
    assert isinstance(made.masked, llm_shearing.MaskedLlama)
    resave(made.path, lambda content: without_heads(content["state"]["model"]))
    made.masked.zs["head"] = torch.ones(3, 3)
    with torch.no_grad():
        assert_same(load(made.path, heads="3"), made.inputs, made.masked(*made.inputs))
    with pytest.raises(ModelFileError, match="24 hidden dimensions do not split into 5 heads"):
        load(made.path, heads="5")
