"""Is the cost a sum of products of kept shares, with the right derivative?"""

from __future__ import annotations

import torch

from l0runtime.gates.cost import CostModel, Term


def test_a_cost_is_the_sum_of_products_by_hand() -> None:
    cost = CostModel([Term(6.0, (0, 1)), Term(2.0, ()), Term(2.0, (1, 1))], 2)
    assert cost.total == 10.0
    # 0.6 * 0.5 * 0.25 + 0.2 + 0.2 * 0.0625
    assert torch.isclose(cost.fraction(torch.tensor([0.5, 0.25])), torch.tensor(0.2875))


def test_the_derivative_is_finite_where_a_gate_vector_is_all_closed() -> None:
    cost = CostModel([Term(6.0, (0, 1)), Term(4.0, (1,))], 2)
    shares = torch.tensor([0.0, 0.5], requires_grad=True)
    cost.fraction(shares).backward()
    assert shares.grad is not None
    assert torch.allclose(shares.grad, torch.tensor([0.6 * 0.5, 0.4]))


def test_selecting_gates_leaves_the_others_open() -> None:
    cost = CostModel([Term(6.0, (0, 1)), Term(4.0, (2,))], 3).select([2, 0])
    assert torch.isclose(cost.fraction(torch.tensor([0.5, 0.25])), torch.tensor(0.6 * 0.25 + 0.4 * 0.5))
