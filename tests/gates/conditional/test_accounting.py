"""Work is counted for what runs, and blocks within blocks only where both do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from l0runtime.gates import ConditionalResNet
from l0runtime.gates.conditional import Conditional, ConditionalGate, EarlyExit, block_macs, execution_rates, total_macs

from .test_blocks import X, by_first_feature


def test_the_work_of_a_residual_network_is_counted_by_hand() -> None:
    net = ConditionalResNet(channels=1, widths=(4, 6), blocks=1, classes=3, hidden=2)
    x = torch.zeros(1, 1, 8, 8)
    blocks = [64 * 2 * 9 * 4 * 4, 16 * 2 * 9 * 6 * 6]
    assert list(block_macs(net, x).values()) == blocks
    gates = (4 * 2 + 2) + (6 * 2 + 2)
    assert total_macs(net, x) == sum(blocks) + gates + 64 * 9 * 4 + 16 * 9 * 4 * 6 + 6 * 3


def test_grouped_convolutions_count_the_inputs_of_their_group() -> None:
    net = nn.Sequential(Conditional(nn.Conv2d(4, 4, 3, padding=1, groups=2), by_first_feature(4)))
    assert block_macs(net, torch.zeros(1, 4, 5, 5)) == {"0.gate": 25 * 4 * 2 * 9}


class Attention(nn.Module):
    """Self-attention behind a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        result: torch.Tensor = self.attention(x, x, x, need_weights=False)[0]
        return result


def test_attention_counts_its_products_too() -> None:
    width, length = 8, 5
    net = nn.Sequential(Conditional(Attention(width, 2), ConditionalGate(width, hidden=0)))
    projections = 4 * length * width * width
    assert block_macs(net, torch.zeros(1, length, width)) == {"0.gate": projections + 2 * length * length * width}
    assert torch.backends.mha.get_fastpath_enabled()


def test_each_sample_pays_for_what_ran_for_it() -> None:
    """The inner gate reads what the outer body computes: the negated input."""
    inner = Conditional(nn.Linear(3, 3), by_first_feature(3))
    negate = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        negate.weight.copy_(-torch.eye(3))
    net = EarlyExit(nn.Linear(3, 3), nn.Sequential(negate, inner), by_first_feature(3))
    assert block_macs(net, X) == {"gate": 9 + 3, "rest.1.gate": 9}
    found = execution_rates(net.train(), X)
    assert net.training
    # samples 0 and 2 go on; behind the negation no first feature of theirs is positive
    assert {name: ran.tolist() for name, ran in found.runs.items()} == {
        "gate": [True, False, True],
        "rest.1.gate": [False, False, False],
    }
    always = 3 + 9
    assert found.macs.tolist() == [always + 12, always, always + 12]
    assert found.mean_macs == always + 8


def test_rates_are_shares_of_samples() -> None:
    net = nn.Sequential(Conditional(nn.Linear(3, 3), by_first_feature(3)))
    assert execution_rates(net, X, batch_size=2).rates == {"0.gate": pytest.approx(2 / 3)}
