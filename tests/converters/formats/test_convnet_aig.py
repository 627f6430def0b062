"""Checkpoints of ConvNet-AIG compute what its masked blocks compute by argmax, and skip what argmax skips."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from format_agreement import assert_same_as_masked, load_made, recognised, resave

import l0runtime
from benchmarks.sources.masked import convnet_aig
from converters import convert
from converters.sources import SourceOptions, load_source
from l0runtime.conditional.counting import CountingSession
from l0runtime.errors import ModelFileError, OptionError


@pytest.mark.parametrize("network", ["cifar", "imagenet"])
def test_a_network_computes_what_the_masked_blocks_compute(tmp_path: Path, network: str) -> None:
    made = convnet_aig.make(tmp_path, True, network)
    assert recognised(made.path) == "convnet-aig"
    gated = assert_same_as_masked(made)
    assert gated.gates == ()
    assert gated.notes == (
        f"{6 if network == 'cifar' else 4} gates that look at the input: a block runs where logit 1 exceeds logit 0 "
        "(argmax); the original draws at random, in evaluation too",
    )


def test_the_real_depths_are_read_from_the_names(tmp_path: Path) -> None:
    """ResNet110_cifar: three layers of 18 blocks, 16 to 64 channels."""
    made = convnet_aig.make(tmp_path, False)
    gated = load_made(made)
    assert gated.module is not None
    assert [len(gated.module.get_submodule(f"layer{n}")) for n in (1, 2, 3)] == [18, 18, 18]  # type: ignore[arg-type]
    assert gated.example_inputs[0].shape == (1, 3, 32, 32)


def test_a_tie_skips_the_block(tmp_path: Path) -> None:
    made = convnet_aig.make(tmp_path, True)
    with torch.no_grad():
        for module in made.masked.modules():
            if isinstance(module, convnet_aig.AigBlock):
                module.fc2.weight[1] = module.fc2.weight[0]
                assert module.fc2.bias is not None
                module.fc2.bias.fill_(0.5)
    torch.save(made.masked.state_dict(), made.path)
    assert_same_as_masked(made)


@pytest.mark.parametrize("rows", [1, 7, 32])
def test_the_converted_file_skips_and_agrees(tmp_path: Path, rows: int) -> None:
    made = convnet_aig.make(tmp_path, True)
    report = convert(made.path, tmp_path / "compact.onnx")
    assert report.conditional is not None
    assert [block.form for block in report.conditional.blocks] == ["samples"] * 6
    assert all(block.is_binary for block in report.conditional.blocks)
    x = convnet_aig.images(rows, 32, seed=rows)
    with torch.no_grad():
        expected = made.masked(x).numpy()
    session = l0runtime.load(tmp_path / "compact.onnx", device="cpu", threads=1, count_blocks=True)
    assert isinstance(session, CountingSession)
    outputs, found = session.run_counted({session.inputs[0].name: x.numpy()})
    # float32 sums of up to 288 products through 13 layers
    np.testing.assert_allclose(next(iter(outputs.values())), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    if rows == 32:
        assert 0 < sum(found.wanted) < 6 * rows
        assert found.macs < found.macs_masked


def test_a_file_of_an_old_torch_has_no_counters(tmp_path: Path) -> None:
    made = convnet_aig.make(tmp_path, True)

    def drop(content: dict[str, Any]) -> None:
        content["state_dict"] = {
            name: tensor for name, tensor in content["state_dict"].items() if "num_batches_tracked" not in name
        }

    resave(made.path, drop)
    assert_same_as_masked(made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("module.layer2.0.fc2.bias"),
            "parameters do not fit AdaptiveResNet: missing layer2.0.fc2.bias; left over none.",
        ),
        (
            lambda state: state.update({"module.layer2.0.fc2.weight": torch.zeros(3, 16, 1, 1)}),
            "layer2.0.fc2.weight has shape [3, 16, 1, 1]; AdaptiveResNet expects [2, 16, 1, 1].",
        ),
        (
            lambda state: state.update({"module.conv1.weight": torch.zeros(8, 3, 5, 5)}),
            "its parameters are those of no ConvNet-AIG network (a 5x5 stem; the known ones are 3x3 (CIFAR) and 7x7 "
            "(ImageNet)); known are the ResNets for CIFAR and ImageNet. Load it in torch and convert the live module.",
        ),
        (
            lambda state: state.update({"module.layer1.99999999.conv1.weight": torch.zeros(1)}),
            "its parameters are those of no ConvNet-AIG network (100000000 blocks in layer1); known are the ResNets "
            "for CIFAR and ImageNet. Load it in torch and convert the live module.",
        ),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path: Path, change: Any, message: str) -> None:
    path = convnet_aig.make(tmp_path, True).path
    resave(path, lambda content: change(content["state_dict"]))
    with pytest.raises(ModelFileError, match=f"^{re.escape(f'{path}: {message}')}$"):
        load_source(path, SourceOptions())


def test_there_are_no_options_and_no_model_to_give(tmp_path: Path) -> None:
    path = convnet_aig.make(tmp_path, True).path
    with pytest.raises(OptionError) as caught:
        load_source(path, SourceOptions(extra={"gates": "random"}))
    assert str(caught.value) == f"{path}: format convnet-aig has no option 'gates'; it has none."
    with pytest.raises(OptionError) as caught:
        load_source(path, SourceOptions(model="a:b"))
    assert str(caught.value) == f"{path}: the parameters' names say which network it is; leave out the model."
