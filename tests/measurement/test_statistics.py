"""Intervals cover what they should, and a verdict needs the whole interval."""

from __future__ import annotations

import numpy as np
import pytest

from l0runtime.measurement.statistics import Interval, Verdict, bootstrap_ratio, judge, percentile

QUIET = Interval(1.0, 0.999, 1.001)


def test_equal_blocks_give_the_ratio_itself() -> None:
    interval = bootstrap_ratio(np.full((6, 4), np.log(1.25)))
    assert interval.estimate == pytest.approx(1.25, rel=1e-12)
    assert (interval.low, interval.high) == pytest.approx((1.25, 1.25), rel=1e-12)


def test_the_estimate_is_the_mean_of_the_middle_half() -> None:
    # of 1, 2, 3, 4, 5, 6, 7, 800 the quarters 1, 2 and 7, 800 go: (3 + 4 + 5 + 6) / 4
    blocks = np.array([[1.0, 800.0, 3.0, 4.0], [5.0, 2.0, 7.0, 6.0]])
    assert np.log(bootstrap_ratio(np.minimum(blocks, 700.0)).estimate) == pytest.approx(4.5)


def test_the_interval_covers_the_truth_in_most_of_many_experiments() -> None:
    # rounds differ by 1 %, blocks inside a round by 1 %; the truth is ratio 1
    generator = np.random.default_rng(1)
    covered = sum(
        bootstrap_ratio(generator.normal(0, 0.01, (6, 1)) + generator.normal(0, 0.01, (6, 6))).contains(1.0)
        for _ in range(200)
    )
    # six rounds are few for a bootstrap, so less than the nominal 190, yet far from what ignoring rounds gives
    assert covered >= 165


def test_ignoring_the_rounds_would_cover_far_less() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        blocks = generator.normal(0, 0.01, (6, 1)) + generator.normal(0, 0.001, (6, 6))
        covered += bootstrap_ratio(blocks.reshape(1, 36)).contains(1.0)
    assert covered < 150


def test_a_bootstrap_repeats_with_its_seed() -> None:
    blocks = np.random.default_rng(2).normal(0, 0.01, (6, 6))
    assert bootstrap_ratio(blocks, seed=3) == bootstrap_ratio(blocks, seed=3)
    assert bootstrap_ratio(blocks, seed=3) != bootstrap_ratio(blocks, seed=4)


@pytest.mark.parametrize(
    ("low", "high", "margin", "verdict"),
    [
        (1.03, 1.05, 0.02, Verdict.FASTER),
        (1.01, 1.05, 0.02, Verdict.INCONCLUSIVE),
        (0.99, 1.01, 0.02, Verdict.INCONCLUSIVE),
        (0.99, 1.01, 0.00, Verdict.INCONCLUSIVE),
        (0.97, 0.99, 0.02, Verdict.INCONCLUSIVE),
        (0.93, 0.97, 0.02, Verdict.NOT_FASTER),
    ],
)
def test_a_verdict_needs_the_whole_interval_beyond_the_margin(
    low: float, high: float, margin: float, verdict: Verdict
) -> None:
    assert judge(Interval(1.0, low, high), QUIET, margin) is verdict


@pytest.mark.parametrize("control", [Interval(1.03, 1.02, 1.04), Interval(0.97, 0.96, 0.98)])
def test_a_control_that_strays_raises_the_bar_in_both_directions(control: Interval) -> None:
    # each control is surely 2 % off; a speed-up or slow-down of 1.5 to 3 % proves nothing then
    assert judge(Interval(1.02, 1.015, 1.03), control, 0.0) is Verdict.INCONCLUSIVE
    assert judge(Interval(0.98, 0.97, 0.985), control, 0.0) is Verdict.INCONCLUSIVE
    assert judge(Interval(1.02, 1.015, 1.03), QUIET, 0.0) is Verdict.FASTER
    assert judge(Interval(0.98, 0.97, 0.985), QUIET, 0.0) is Verdict.NOT_FASTER


def test_exit_codes_are_the_promised_ones() -> None:
    assert [verdict.exit_code for verdict in Verdict] == [0, 1, 2]


def test_percentiles_need_enough_samples_beyond_them() -> None:
    samples = np.arange(1, 501, dtype=float)
    assert percentile(samples, 99) == pytest.approx(495.01)  # rank 0.99 * 499 = 494.01, counted from 0
    assert percentile(samples[:-1], 99) is None
    assert percentile(samples[:50], 90) == pytest.approx(45.1)
    assert percentile(samples[:49], 90) is None
