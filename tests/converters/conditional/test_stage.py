"""A trained conditional module becomes a verified file with branches, and the report says what they save."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from converters import convert, inspect
from converters.conditional import stage
from l0runtime.conditional import read_conditional
from l0runtime.errors import VerificationError

W = 6


class Decision(nn.Module):
    """1 where a linear function of the means is positive."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.linear = nn.Linear(W, 1)
        with torch.no_grad():
            self.linear.bias.fill_(bias)

    def forward(self, x: Tensor) -> Tensor:
        logit: Tensor = self.linear(x.mean((2, 3)))
        return (logit > 0).to(x.dtype)[:, :, None, None]


class Block(nn.Module):
    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(W, W, 3, padding=1), nn.BatchNorm2d(W)
        self.conv2, self.bn2 = nn.Conv2d(W, W, 3, padding=1), nn.BatchNorm2d(W)
        self.gate = Decision(bias)

    def forward(self, x: Tensor) -> Tensor:
        block = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(x + self.gate(x) * block)


def make_net() -> nn.Sequential:
    """Blocks 1 and 2 are conditional; block 3 never runs; half of block 1's inner channels are closed for good."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, W, 3, padding=1), Block(), Block(), Block(-5.0), nn.Conv2d(W, 2, 1)).eval()
    with torch.no_grad():
        net[3].gate.linear.weight.zero_()
        net[1].bn1.weight[:3] = 0
        net[1].bn1.bias[:3] = -1
    return net


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("conditional")


@pytest.fixture(scope="module")
def report(folder: Path) -> object:
    return convert(
        make_net(), folder / "out.onnx", example_inputs=(torch.randn(2, 3, 8, 8),), gated_output=folder / "gated.onnx"
    )


def run(path: Path, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    output: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return output


@pytest.mark.parametrize("batch", [1, 2, 7, 32])
def test_the_file_computes_what_the_module_computes(report: object, folder: Path, batch: int) -> None:
    x = np.random.default_rng(batch).standard_normal((batch, 3, 8, 8)).astype(np.float32) * 3
    with torch.no_grad():
        expected = make_net()(torch.from_numpy(x)).numpy()
    # float32 sums of 54 products
    np.testing.assert_allclose(run(folder / "out.onnx", x), expected, rtol=1e-4, atol=1e-5)


def test_two_blocks_become_branches_and_the_third_is_gone(report: object, folder: Path) -> None:
    model = onnx.load(str(folder / "out.onnx"))
    metadata = {entry.key.removeprefix("l0runtime."): entry.value for entry in model.metadata_props}
    found = read_conditional(metadata)
    assert found is not None
    assert [(block.name, block.form) for block in found.blocks] == [("1", "samples"), ("2", "samples")]
    assert sum(node.op_type == "If" for node in model.graph.node) == 2
    # 64 pixels; half of the first block's channels are closed: 6 -> 3 -> 6 and 6 -> 6 -> 6, 9 weights each
    assert [block.macs for block in found.blocks] == [64 * 9 * 36, 64 * 9 * 72]
    assert [block.gate_macs for block in found.blocks] == [W, W]
    assert found.macs_always == 64 * 9 * 18 + 2 * W + 64 * 12
    assert json.loads(metadata["macs"])[1] == found.macs_masked


def test_the_report_says_what_was_done(report: object) -> None:
    notes = report.notes  # type: ignore[attr-defined]
    assert "3: its gate fires for no input, so it was removed" in notes
    assert (
        "1: conditional, 20,736 MACs that its gate (6 MACs) can save; too small to pay for its gate and a branch on a "
        "CPU, "
        "--measure would leave it unconditional"
    ) in notes


def test_report_and_inspection_show_the_blocks(report: object, folder: Path) -> None:
    shown = str(report)
    head = "blocks that run for some inputs only: 11,148 MACs when none runs, 73,356 when all do"
    assert head in shown
    found = inspect(folder / "out.onnx")
    assert head in str(found)
    assert found.conditional is not None
    assert [block.branch for block in found.conditional.blocks] == ["1.If", "2.If"]
    assert "conditional" not in found.conversion
    # of the file's 6-channel convolutions: 3 -> 6, 6 -> 3 -> 6 and 6 -> 6 -> 6, 6 -> 2, two gates; biases; no scalars
    weights = (3 * 6 * 9 + 6) + (6 * 3 * 9 + 3 + 3 * 6 * 9 + 6) + 2 * (6 * 6 * 9 + 6) + (6 * 2 + 2) + 2 * (6 + 1)
    assert abs(found.parameters - weights) <= 4  # thresholds


def test_names_types_and_shapes_of_outputs_stay(report: object, folder: Path) -> None:
    gated, compact = onnx.load(str(folder / "gated.onnx")).graph, onnx.load(str(folder / "out.onnx")).graph
    assert [value.name for value in compact.output] == [value.name for value in gated.output]
    assert [value.name for value in compact.input] == [value.name for value in gated.input]


def test_a_wrong_branch_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is scattered back has the wrong sign, which this net's own gates, open for all samples, never show."""
    right = stage.outline

    def wrong(model: ir.Model, keep_masked: object = ()) -> object:
        result = right(model)
        for graph in model.graph.subgraphs():
            for node in graph:
                if node.op_type == "ScatterND":
                    turned = ir.node("Neg", [node.inputs[2]])
                    turned.outputs[0].type, turned.outputs[0].shape = node.inputs[2].type, node.inputs[2].shape  # type: ignore[union-attr]
                    graph.insert_before(node, turned)
                    node.replace_input_with(2, turned.outputs[0])
        return result

    monkeypatch.setattr(stage, "outline", wrong)
    net = nn.Sequential(nn.Conv2d(3, W, 3), Block(0.3), nn.Conv2d(W, 2, 1)).eval()
    with torch.no_grad():
        net[1].gate.linear.weight.mul_(1e-3)  # fires for nearly every input
    with pytest.raises(VerificationError, match="between the masked and the conditional model"):
        convert(net, tmp_path / "out.onnx", example_inputs=(torch.randn(2, 3, 8, 8),))
    assert list(tmp_path.iterdir()) == []


def test_measuring_leaves_a_tiny_block_unconditional(tmp_path: Path) -> None:
    net = nn.Sequential(Block(0.1), nn.Conv2d(W, 2, 1)).eval()
    report = convert(net, tmp_path / "out.onnx", example_inputs=(torch.randn(1, W, 2, 2),), measure=True)
    if report.conditional is None:  # a machine on which even this pays is possible, if unlikely
        assert "If" not in {node.op_type for node in onnx.load(str(tmp_path / "out.onnx")).graph.node}
        assert any("left unconditional" in note for note in report.notes)
    else:
        assert any("pays where at most" in note for note in report.notes)
    x = np.random.default_rng(0).standard_normal((5, W, 2, 2)).astype(np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(
            run(tmp_path / "out.onnx", x), net(torch.from_numpy(x)).numpy(), rtol=1e-4, atol=1e-5
        )
