"""The same 500 logits, read by the formats of three evaluation rules, keep different gates and take different values.

NumPy restates each rule from its code base; the readers must agree with it gate by gate, and not with one another.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from converters.sources import SourceOptions, load_source

LOGITS = np.random.default_rng(0).normal(-2, 1.5, 500).astype(np.float32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def paper(a: np.ndarray) -> np.ndarray:
    """L0_regularization: hardtanh(sigmoid(a) 1.2 - 0.1)."""
    return np.clip(sigmoid(a) * 1.2 - 0.1, 0, 1)


def median(a: np.ndarray) -> np.ndarray:
    """constrained_sparsity: clamp(sigmoid(a / T) 1.2 - 0.1), T = 2/3."""
    return np.clip(sigmoid(a * 1.5) * 1.2 - 0.1, 0, 1)


def top_k(a: np.ndarray) -> np.ndarray:
    """FLOP at T = 2/3: the round(n - E[L0]) smallest of sigmoid(0.8 a / T) are 0."""
    zeros = round(len(a) - sigmoid(a - 2 / 3 * np.log(0.1 / 1.1)).sum())
    values = sigmoid(0.8 * a * 1.5)
    values[np.argsort(a, kind="stable")[:zeros]] = 0
    return values


def arm(a: np.ndarray) -> np.ndarray:
    """l0-arm: sigmoid(7 a), 0 below one half."""
    return np.where(sigmoid(7 * a) < 0.5, 0, sigmoid(7 * a))


class Wide(nn.Module):
    """A linear layer called `out`; its weights are all 1, so that reading gives the gates themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(500, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.out(x)
        return output


def write(folder: Path, format: str) -> SourceOptions:
    gates, ones, bias = torch.from_numpy(LOGITS.copy()), torch.ones(500, 1), torch.zeros(1)
    if format == "amlab":
        layer = {"output.0.weights": ones, "output.0.qz_loga": gates, "output.0.bias": bias}
        torch.save({"state_dict": layer}, folder / "file")
        return SourceOptions()
    if format == "l0-arm":
        torch.save({"output.0.weights": ones, "output.0.z_phi": gates, "output.0.bias": bias}, folder / "file")
        return SourceOptions()
    if format == "constrained-sparsity":
        torch.save({"out.weight": ones.t(), "out.weight_log_alpha": gates, "out.bias": bias}, folder / "file")
        return SourceOptions(Wide)
    torch.save({"out.weight": ones, "out.mask.log_alpha": gates, "out.bias": bias}, folder / "file")
    return SourceOptions(Wide, extra={"temperature": str(2 / 3)})


RULES = {"amlab": paper, "constrained-sparsity": median, "flop": top_k, "l0-arm": arm}
# as many as NumPy keeps of these logits
KEPT = {"amlab": 290, "constrained-sparsity": 193, "flop": 212, "l0-arm": 46}


@pytest.mark.parametrize("format", RULES)
def test_a_format_keeps_the_gates_of_its_rule_and_of_no_other(format: str, tmp_path: Path) -> None:
    options = write(tmp_path, format)
    gated = load_source(tmp_path / "file", options)
    assert gated.format == format
    (group,) = gated.gates
    assert (group.units, group.kept) == (500, KEPT[format])
    assert gated.module is not None
    with torch.no_grad():
        values = gated.module(torch.eye(500))[:, 0].numpy()  # unit by unit
    for name, rule in RULES.items():
        expected = rule(LOGITS)
        same = np.array_equal(values == 0, expected == 0)
        assert same is (name == format)
        if name == format:
            np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)  # float32 sigmoids
