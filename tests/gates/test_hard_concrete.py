"""Is the hard-concrete distribution the paper's? Compared with NumPy's own draws and numerical integration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from l0runtime.errors import GateParameterError
from l0runtime.gates import HardConcrete

CONSTANTS = [(2 / 3, -0.1, 1.1), (0.33, -0.2, 1.05), (1.0, -0.5, 2.0)]
LOG_ALPHAS = [-3.0, -1.0, 0.0, 0.7, 2.5]
DRAWS = 400_000
# Five standard deviations of a frequency over DRAWS draws: a right formula fails once in a million runs of one case.
FIVE_SIGMA = 5 * math.sqrt(0.25 / DRAWS)


def draw_with_numpy(log_alpha: float, beta: float, gamma: float, zeta: float) -> np.ndarray:
    """Equations 10 and 11 of the paper, written out in float64."""
    u = np.random.default_rng(7).uniform(size=DRAWS)
    s = 1 / (1 + np.exp(-(np.log(u) - np.log(1 - u) + log_alpha) / beta))
    return np.minimum(1, np.maximum(0, s * (zeta - gamma) + gamma))


@pytest.mark.parametrize("constants", CONSTANTS)
@pytest.mark.parametrize("log_alpha", LOG_ALPHAS)
def test_probabilities_of_the_two_point_masses_match_draws(
    constants: tuple[float, float, float], log_alpha: float
) -> None:
    z = draw_with_numpy(log_alpha, *constants)
    distribution = HardConcrete(*constants)
    a = torch.tensor(log_alpha, dtype=torch.float64)
    assert distribution.probability_open(a).item() == pytest.approx((z != 0).mean(), abs=FIVE_SIGMA)
    assert distribution.probability_fully_open(a).item() == pytest.approx((z == 1).mean(), abs=FIVE_SIGMA)


@pytest.mark.parametrize("constants", CONSTANTS)
@pytest.mark.parametrize("log_alpha", LOG_ALPHAS)
@pytest.mark.parametrize("value", [0.0, 0.2, 0.5, 0.9])
def test_cumulative_probability_matches_draws(
    constants: tuple[float, float, float], log_alpha: float, value: float
) -> None:
    z = draw_with_numpy(log_alpha, *constants)
    found = HardConcrete(*constants).cumulative(value, torch.tensor(log_alpha, dtype=torch.float64)).item()
    assert found == pytest.approx((z <= value).mean(), abs=FIVE_SIGMA)


@pytest.mark.parametrize("constants", CONSTANTS)
@pytest.mark.parametrize("log_alpha", LOG_ALPHAS)
def test_density_matches_a_histogram_of_draws(constants: tuple[float, float, float], log_alpha: float) -> None:
    z = draw_with_numpy(log_alpha, *constants)
    counts, edges = np.histogram(z[(z > 0) & (z < 1)], bins=20, range=(0, 1))
    centres = torch.linspace(0, 1, 20 * 50 + 1, dtype=torch.float64)[:-1] + 1 / (2 * 20 * 50)
    density = HardConcrete(*constants).log_density(centres, torch.tensor(log_alpha, dtype=torch.float64)).exp()
    mass_of_bins = density.view(20, 50).mean(1).numpy() * np.diff(edges)
    # the midpoint rule with 1000 points is good to 1e-5 here, far below the sampling error
    np.testing.assert_allclose(counts / DRAWS, mass_of_bins, atol=FIVE_SIGMA)


@pytest.mark.parametrize("constants", CONSTANTS)
@pytest.mark.parametrize("log_alpha", LOG_ALPHAS)
def test_point_masses_and_density_add_up_to_one(constants: tuple[float, float, float], log_alpha: float) -> None:
    distribution = HardConcrete(*constants)
    a = torch.tensor(log_alpha, dtype=torch.float64)
    points = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    between = distribution.log_density(points, a).exp().mean()
    total = (1 - distribution.probability_open(a)) + distribution.probability_fully_open(a) + between
    # error of the midpoint rule, h^2 / 24 times a second derivative of order 100
    assert total.item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("constants", CONSTANTS)
def test_a_sample_is_the_papers_formula_of_its_noise(constants: tuple[float, float, float]) -> None:
    beta, gamma, zeta = constants
    a = np.linspace(-4, 4, 9)
    noise = np.random.default_rng(1).logistic(size=(50, 9))
    expected = np.clip((zeta - gamma) / (1 + np.exp(-(noise + a) / beta)) + gamma, 0, 1)
    found = HardConcrete(*constants).sample(torch.from_numpy(a), torch.from_numpy(noise))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_noise_is_logistic_and_finite() -> None:
    noise = HardConcrete().draw_noise((DRAWS,), torch.empty(0), torch.Generator().manual_seed(3))
    assert noise.isfinite().all()
    for threshold in (-2.0, 0.0, 1.5):
        expected = 1 / (1 + math.exp(-threshold))
        assert (noise <= threshold).double().mean().item() == pytest.approx(expected, abs=FIVE_SIGMA + 1e-6)


def test_gradient_reaches_log_alpha_through_an_undecided_sample_only() -> None:
    log_alpha = torch.zeros(3, requires_grad=True)
    noise = torch.tensor([-20.0, 0.1, 20.0])  # closed, undecided, fully open
    HardConcrete().sample(log_alpha, noise).sum().backward()
    assert log_alpha.grad is not None
    assert log_alpha.grad[0] == 0
    assert log_alpha.grad[1] > 0.1
    assert log_alpha.grad[2] == 0


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ((0.0, -0.1, 1.1), "HardConcrete: beta is 0.0; expected a finite number above 0."),
        ((math.nan, -0.1, 1.1), "HardConcrete: beta is nan; expected a finite number above 0."),
        ((0.5, 0.0, 1.1), "HardConcrete: gamma is 0.0; expected a finite number below 0, or no gate can close."),
        ((0.5, -0.1, 1.0), "HardConcrete: zeta is 1.0; expected a finite number above 1, or no gate can open fully."),
        (
            (0.5, -0.1, math.inf),
            "HardConcrete: zeta is inf; expected a finite number above 1, or no gate can open fully.",
        ),
    ],
)
def test_constants_without_meaning_are_refused(constants: tuple[float, float, float], message: str) -> None:
    with pytest.raises(GateParameterError) as caught:
        HardConcrete(*constants)
    assert str(caught.value) == message


def test_cumulative_probability_beyond_one_is_refused() -> None:
    with pytest.raises(GateParameterError) as caught:
        HardConcrete().cumulative(1.0, torch.zeros(1))
    assert str(caught.value) == "HardConcrete.cumulative: value is 1.0; expected 0 <= value < 1."
