"""A module is asked which sizes may vary, and its answer is checked."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from converters.dynamic_axes import axis_names, first_line, name_dynamic_axes, resized, size_axes, why_not

IMAGE = torch.arange(2.0 * 8 * 9).view(1, 2, 8, 9)
TOKENS = torch.tensor([[3, 1, 4]])


class Pooled(nn.Module):
    """The authors' way to end a WideResNet: a window of fixed size, then a view."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, 8).view(-1, 2)


class Masked(nn.Module):
    def forward(self, tokens: Tensor, scale: float = 1.0, mask: Tensor | None = None) -> Tensor:
        return tokens * scale if mask is None else tokens * mask


def test_axes_are_named_by_rank_and_type() -> None:
    assert axis_names(IMAGE) == {0: "batch", 2: "height", 3: "width"}
    assert axis_names(IMAGE[0]) == {0: "batch"}
    assert axis_names(IMAGE.unsqueeze(0)) == {0: "batch", 2: "depth", 3: "height", 4: "width"}
    assert axis_names(TOKENS) == {0: "batch", 1: "length"}
    assert axis_names(torch.tensor(1.0)) == {}
    assert size_axes((TOKENS,), {"image": IMAGE}) == ("length", "height", "width")


def test_resizing_repeats_values_so_that_indices_stay_valid() -> None:
    ((tokens,), _) = resized((TOKENS,), {}, {"batch": 2, "length": 2})
    assert tokens.tolist() == [[3, 1, 4, 3, 1], [3, 1, 4, 3, 1]]


def test_a_module_that_accepts_other_sizes_says_so() -> None:
    assert why_not(nn.Conv2d(2, 2, 3), *resized((IMAGE,), {}, {"batch": 3, "height": 32})) is None


def test_a_module_that_fails_gives_its_own_reason() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 2))
    reason = why_not(net, *resized((IMAGE,), {}, {"height": 32}))
    assert reason == "Sequential: mat1 and mat2 shapes cannot be multiplied (1x720 and 144x2)"


def test_more_rows_than_examples_count_as_a_refusal() -> None:
    reason = why_not(Pooled(), *resized((IMAGE,), {}, {"batch": 3, "height": 32, "width": 64}))
    assert reason == "an output has shape [135, 2] for a batch of 3"


def test_a_module_without_batched_inputs_has_no_batch_to_vary() -> None:
    assert why_not(nn.Identity(), (torch.tensor(1.0),), {}) == "no input has a batch axis"


def test_dynamic_axes_follow_the_inputs_by_name_where_there_are_keywords() -> None:
    found = name_dynamic_axes(Masked(), (TOKENS,), {"mask": TOKENS, "scale": 2.0}, {"batch"})
    assert found == {"tokens": {0: "batch"}, "mask": {0: "batch"}, "scale": None}
    assert name_dynamic_axes(Masked(), (TOKENS,), {}, {"batch", "length"}) == ({0: "batch", 1: "length"},)


def test_errors_are_told_in_one_line() -> None:
    assert first_line(ValueError("\n  first.\nsecond")) == "first"
    assert first_line(ValueError()) == "ValueError"
