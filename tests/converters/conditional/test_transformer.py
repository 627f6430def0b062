"""Attention, feed-forward layers and the rest of an encoder run for some sequences only, trained and converted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import l0runtime
from converters import convert
from converters.report import Report
from l0runtime.conditional.counting import CountingSession
from l0runtime.gates.conditional import (
    Conditional,
    ConditionalGate,
    ConditionalPenalty,
    EarlyExit,
    block_macs,
    execution_rates,
)

WIDTH, LENGTH, HEADS, HIDDEN = 8, 6, 2, 16


class Attention(nn.Module):
    """Self-attention behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        parts = self.qkv(self.norm(x)).reshape(rows, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(rows, length, WIDTH))
        return result


def feed_forward() -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.mean(1))
        return logits


def layer(kind: str) -> nn.Sequential:
    def gate() -> ConditionalGate:
        return ConditionalGate(WIDTH, hidden=4, kind=kind, initial_rate=0.5)  # type: ignore[arg-type]

    return nn.Sequential(Conditional(Attention(), gate()), Conditional(feed_forward(), gate()))


def make_net(kind: str) -> nn.Sequential:
    """Two layers and a way out between them, trained for some steps."""
    torch.manual_seed(1)
    rest = nn.Sequential(layer(kind), Classifier())
    gate = ConditionalGate(WIDTH, kind=kind, initial_rate=0.5)  # type: ignore[arg-type]
    net = nn.Sequential(layer(kind), EarlyExit(Classifier(), rest, gate)).train()
    penalty = ConditionalPenalty(net, 0.5, unit="macs", macs=block_macs(net, sequences(1)), shaping=0.05)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for step in range(60):
        x = sequences(64, seed=step)
        loss = nn.functional.cross_entropy(net(x), (x[:, 0, 0] > 0).long()) + penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def sequences(rows: int, seed: int = 0) -> Tensor:
    """Each with a mean of its own, by which gates can tell them apart."""
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randn(rows, 1, WIDTH, generator=generator)
    return torch.randn(rows, LENGTH, WIDTH, generator=generator) + 2 * shift


@pytest.fixture(scope="module", params=["gumbel", "hard-concrete"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path, Report]:
    path = tmp_path_factory.mktemp(request.param) / "compact.onnx"
    net = make_net(request.param)
    return net, path, convert(net, path, example_inputs=(sequences(2),))


def test_every_block_runs_for_any_of_the_sequences(case: tuple[nn.Module, Path, Report]) -> None:
    _, _, report = case
    assert report.conditional is not None
    blocks = report.conditional.blocks
    assert [block.form for block in blocks] == ["samples"] * 5
    assert sorted((block.parent is not None) for block in blocks) == [False] * 3 + [True] * 2


@pytest.mark.parametrize("rows", [1, 2, 7, 32])
def test_the_file_computes_what_the_module_computes(case: tuple[nn.Module, Path, Report], rows: int) -> None:
    net, path, _ = case
    x = sequences(rows, seed=rows + 100)
    with torch.no_grad():
        expected = net(x).numpy()
    session = l0runtime.load(path, device="cpu", threads=1)
    # float32 sums of up to 16 products through two layers
    np.testing.assert_allclose(session(x.numpy()), expected, rtol=1e-4, atol=1e-5)


def test_a_session_counts_what_the_module_decides(case: tuple[nn.Module, Path, Report]) -> None:
    net, path, _ = case
    x = sequences(64, seed=7)
    session = l0runtime.load(path, device="cpu", threads=1, count_blocks=True)
    assert isinstance(session, CountingSession)
    _, found = session.run_counted({session.inputs[0].name: x.numpy()})
    decided = execution_rates(net, x)
    assert sorted(found.wanted) == sorted(int(ran.sum()) for ran in decided.runs.values())
    assert 0 < sum(found.wanted) < 64 * 5  # not all alike
    assert found.macs == int(decided.macs.sum())
