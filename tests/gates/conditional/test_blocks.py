"""Conditional blocks compute their documented formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from l0runtime.errors import GateParameterError
from l0runtime.gates import ConditionalResNet, load, save
from l0runtime.gates.conditional import Conditional, ConditionalGate, ConfidenceExit, EarlyExit


def by_first_feature(features: int) -> ConditionalGate:
    """Runs where the first feature is positive."""
    gate = ConditionalGate(features, hidden=0)
    with torch.no_grad():
        gate.last.weight.zero_()
        gate.last.weight[0, 0] = 1
        gate.last.bias.zero_()
    return gate


X = torch.tensor([[1.0, -2, 3], [-1, 2, 3], [2, 0, 1]])
RUNS = torch.tensor([[1.0], [0], [1]])


def test_a_residual_block_adds_its_body_where_the_gate_is_open() -> None:
    body = nn.Linear(3, 3)
    block = Conditional(body, by_first_feature(3), activation=nn.ReLU()).eval()
    torch.testing.assert_close(block(X), torch.relu(X + RUNS * body(X)))


def test_a_shortcut_is_always_computed() -> None:
    body, shortcut = nn.Linear(3, 2), nn.Linear(3, 2)
    block = Conditional(body, by_first_feature(3), shortcut).eval()
    torch.testing.assert_close(block(X), shortcut(X) + RUNS * body(X))


def test_samples_with_a_closed_gate_leave_early() -> None:
    head, rest = nn.Linear(3, 2), nn.Linear(3, 2)
    network = EarlyExit(head, rest, by_first_feature(3)).eval()
    torch.testing.assert_close(network(X), torch.where(RUNS > 0, rest(X), head(X)))


def test_while_training_both_ways_of_an_exit_learn() -> None:
    torch.manual_seed(0)
    head, rest = nn.Linear(3, 2), nn.Linear(3, 2)
    EarlyExit(head, rest, ConditionalGate(3, initial_rate=0.5)).train()(torch.randn(64, 3)).sum().backward()
    assert head.weight.grad is not None
    assert head.weight.grad.abs().sum() > 0
    assert rest.weight.grad is not None
    assert rest.weight.grad.abs().sum() > 0


def test_a_network_with_gates_and_exits_survives_its_checkpoint(tmp_path: object) -> None:
    torch.manual_seed(0)
    net = ConditionalResNet(widths=(4, 6, 8), blocks=1, gated=True, exits=(0, 1), kind="hard-concrete").eval()
    save(net, f"{tmp_path}/net.safetensors")
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(load(f"{tmp_path}/net.safetensors")(x), net(x), rtol=0, atol=0)


def test_samples_that_the_head_is_sure_of_leave_early() -> None:
    """softmax of (a, 0) is at least 0.9 where |a| >= ln 9 = 2.197."""
    head, rest = nn.Linear(1, 2, bias=False), nn.Linear(1, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0], [0.0]]))
    network = ConfidenceExit(head, rest, 0.9).eval()
    x = torch.tensor([[2.19], [2.20], [-2.3], [0.0]])
    expected = torch.where(torch.tensor([[True], [False], [False], [True]]), rest(x), head(x))
    torch.testing.assert_close(network(x), expected)


def test_the_threshold_of_an_exit_is_a_probability() -> None:
    with pytest.raises(GateParameterError) as caught:
        ConfidenceExit(nn.Linear(1, 2), nn.Linear(1, 2), 1.5)
    assert str(caught.value) == "ConfidenceExit: threshold is 1.5; expected a number above 0, up to 1."
