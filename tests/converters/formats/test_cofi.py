"""Folders of CoFiPruning compute what the original's masked BERT computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from format_agreement import assert_same, assert_same_as_masked, load_made, outputs, recognised, resave

from benchmarks.sources.made import Made
from benchmarks.sources.masked import cofi
from converters.sources import SourceOptions, load_source
from l0runtime.errors import L0RuntimeError, ModelFileError, OptionError, UnsupportedModelError


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return cofi.make(tmp_path, True)


def load(path: Path) -> Any:
    return load_source(path, SourceOptions())


def test_a_pruned_bert_computes_what_the_masked_one_computes(made: Made) -> None:
    assert recognised(made.path) == recognised(made.path / "zs.pt") == "cofi"
    gated = assert_same_as_masked(made)
    assert gated.notes == (
        "9 of 24 hidden dimensions are removed on reading: LayerNorm is taken over the others alone",
        "skipped with their LayerNorm: 0.output, 2.attention",
    )
    by_layer = {group.layer: (group.units, group.kept) for group in gated.gates}
    assert by_layer["hidden_z"] == (24, 15)
    assert by_layer["head_layer_z"] == by_layer["mlp_z"] == (3, 2)


def test_layer_norm_over_all_dimensions_would_be_another_function(made: Made) -> None:
    expected = outputs(load_made(made), *made.inputs)[0]
    for module in made.masked.modules():
        if isinstance(module, cofi.CofiLayerNorm):
            module.live = torch.arange(24)
    with torch.no_grad():
        assert not torch.allclose(made.masked(*made.inputs), expected, rtol=0.01)


def test_a_closed_sub_layer_skips_its_layer_norm_but_closed_heads_alone_do_not(made: Made) -> None:
    """With all heads of layer 1 closed, its output is LayerNorm(bias + input): the bias remains."""
    resave(made.path / "zs.pt", lambda zs: zs["head_z"][1].zero_())
    made.masked.get_buffer("head_z")[1].zero_()
    gated = assert_same_as_masked(made)
    assert "1.attention" not in gated.notes[1]


@pytest.mark.parametrize("kinds", [["hidden_z"], ["head_z", "mlp_z"], ["intermediate_z", "head_layer_z", "mlp_z"]])
def test_a_missing_kind_of_gates_means_one(made: Made, kinds: list[str]) -> None:
    zs = torch.load(made.path / "zs.pt", weights_only=True)
    for kind in kinds:
        made.masked.get_buffer(kind).fill_(1)
        del zs[kind]
    for module in made.masked.modules():
        if isinstance(module, cofi.CofiLayerNorm) and "hidden_z" in kinds:
            module.live = torch.arange(24)
    torch.save(zs, made.path / "zs.pt")
    assert_same_as_masked(made)


def test_with_all_gates_open_it_is_hugging_faces_bert(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)  # not needed, and slow to import
    try:
        from transformers import BertConfig, BertForSequenceClassification
    except Exception as error:
        pytest.skip(f"transformers cannot be imported: {error}")
    sizes = json.loads((made.path / "config.json").read_text())
    torch.manual_seed(3)
    net = BertForSequenceClassification(BertConfig(**sizes, num_labels=4)).eval()
    torch.save(net.state_dict(), made.path / "pytorch_model.bin")
    torch.save({"mlp_z": torch.ones(3)}, made.path / "zs.pt")
    with torch.no_grad():
        ids, mask, types = made.inputs
        expected = net(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
    assert_same(load(made.path), made.inputs, expected)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            lambda zs: zs.update({"mlp_z": torch.ones(4)}),
            ModelFileError,
            "{folder}: mlp_z has shape [4]; the network of config.json has [3] of them. "
            "The files belong to different models.",
        ),
        (
            lambda zs: zs["hidden_z"].fill_(float("inf")),
            ModelFileError,
            "{folder}/zs.pt: hidden_z holds NaN or infinity (24 of 24 values); expected finite numbers. "
            "The training diverged or the file is damaged; take an earlier checkpoint.",
        ),
        (
            lambda zs: zs["hidden_z"].fill_(-1),
            ModelFileError,
            "{folder}/zs.pt: hidden_z holds negative gates; expected values in [0, 1].",
        ),
        (
            lambda zs: zs.update({"qk_z": torch.ones(4)}),
            ModelFileError,
            "{folder}/zs.pt: 'qk_z' is no gate; expected tensors named head_z, head_layer_z, intermediate_z, mlp_z, "
            "hidden_z.",
        ),
    ],
)
def test_gates_that_do_not_fit_are_named(made: Made, change: Any, kind: type[L0RuntimeError], message: str) -> None:
    resave(made.path / "zs.pt", change)
    with pytest.raises(kind) as caught:
        load(made.path)
    assert str(caught.value) == message.format(folder=made.path)


def test_gates_in_a_pickled_module_are_refused_with_the_way_out(made: Made) -> None:
    way_out = (
        "l0_module.pt, a pickled module, which is not read. Where it was made: "
        'zs = torch.load("l0_module.pt", weights_only=False).forward(training=False); torch.save(zs, "zs.pt").'
    )
    torch.save(None, made.path / "zs.pt")
    with pytest.raises(UnsupportedModelError) as caught:
        load_source(made.path, SourceOptions(), "cofi")
    assert str(caught.value) == f"{made.path / 'zs.pt'}: holds None: the gates are in {way_out}"
    (made.path / "zs.pt").rename(made.path / "l0_module.pt")
    assert recognised(made.path) == "cofi"
    with pytest.raises(ModelFileError) as caught_too:
        load(made.path)
    assert str(caught_too.value) == (
        f"{made.path / 'zs.pt'}: no such file; l0_module.pt is a pickled module, which is not read. Where it was made: "
        'zs = torch.load("l0_module.pt", weights_only=False).forward(training=False); torch.save(zs, "zs.pt").'
    )


def test_an_already_pruned_network_is_refused(made: Made) -> None:
    def narrow(state: dict[str, torch.Tensor]) -> None:
        name = "bert.embeddings.word_embeddings.weight"
        state[name] = state[name][:, :20].clone()

    resave(made.path / "pytorch_model.bin", narrow)
    with pytest.raises(ModelFileError) as caught:
        load(made.path)
    assert str(caught.value) == (
        f"{made.path}: word_embeddings have shape [100, 20], hidden_size is 24. The gates are applied already, or the "
        "files belong to different models; give the folder from before pruning."
    )


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"model_type": "roberta"}, UnsupportedModelError, "a network of type 'roberta'; only bert is read. "),
        ({"hidden_act": "swish"}, UnsupportedModelError, "hidden_act is 'swish'; known are gelu, gelu_new, relu."),
        ({"num_attention_heads": 7}, ModelFileError, "hidden_size 24 is no multiple of num_attention_heads 7."),
        (
            {"num_hidden_layers": "3"},
            ModelFileError,
            "num_hidden_layers is '3'; expected a whole number of at least 1.",
        ),
        ({"position_embedding_type": "relative_key"}, UnsupportedModelError, "a BERT with relative positions"),
    ],
)
def test_another_kind_of_network_is_refused(
    made: Made, settings: dict[str, Any], kind: type[L0RuntimeError], message: str
) -> None:
    config = made.path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    with pytest.raises(kind) as caught:
        load(made.path)
    assert str(caught.value).startswith(f"{config}: {message}")


def test_the_architecture_is_in_the_folder(made: Made) -> None:
    with pytest.raises(OptionError) as caught:
        load_source(made.path, SourceOptions(model="a:b"))
    assert str(caught.value) == f"{made.path}: config.json says which network it is; leave out the model."
