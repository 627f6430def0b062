"""Do gates get a learning rate of their own and no weight decay?"""

from __future__ import annotations

import pytest
import torch

from gates.attachable import resnet
from l0runtime.errors import OptionError
from l0runtime.gates import GateSpec, LeNet300, attach, param_groups


def test_gates_and_weights_are_told_apart_and_every_parameter_is_in_one_group() -> None:
    model, inputs = resnet()
    gates = attach(model, GateSpec(), inputs)
    for net, expected in ((model, [g.log_alpha for g in gates]), (LeNet300(inputs=4, hidden=(3, 2)), None)):
        weights, chosen = param_groups(net, 1e-3, 0.05, 1e-4)
        assert (weights["lr"], weights["weight_decay"]) == (1e-3, 1e-4)
        assert (chosen["lr"], chosen["weight_decay"]) == (0.05, 0.0)
        assert len(weights["params"]) + len(chosen["params"]) == len(list(net.parameters()))
        assert len(chosen["params"]) == (3 if expected is None else len(expected))


def test_weight_decay_leaves_gates_where_they_are() -> None:
    model, inputs = resnet()
    gates = attach(model, GateSpec(), inputs)
    before = [gate.log_alpha.detach().clone() for gate in gates]
    optimizer = torch.optim.SGD(param_groups(model, 0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all(torch.equal(gate.log_alpha, old) for gate, old in zip(gates, before, strict=True))


def test_a_learning_rate_that_is_not_positive_is_refused() -> None:
    with pytest.raises(OptionError) as caught:
        param_groups(LeNet300(), 1e-3, 0.0)
    assert str(caught.value) == (
        "param_groups: expected positive learning rates and weight_decay >= 0; found 0.001, 0.0 and 0.0."
    )
