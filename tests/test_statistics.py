"""Intervals over seeds, against scipy's own and by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from rflw_study.statistics import mean_interval, mean_ratio, paired_difference


def test_against_a_t_interval():
    values = [65.2, 64.1, 66.0, 65.5]
    ours = mean_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=ours.mean, scale=stats.sem(values))
    assert (
        (ours.low, ours.high) == pytest.approx((low, high))
        and ours.n == 4
        and ours.mean == pytest.approx(65.2)
    )


def test_two_values_by_hand():
    # deviation of 1 and 3 is sqrt(2), its error 1, and t of one degree of freedom 12.706
    ours = mean_interval([1.0, 3.0])
    assert (ours.mean, ours.low, ours.high) == pytest.approx(
        (2, 2 - 12.7062, 2 + 12.7062), abs=1e-4
    )
    assert str(ours) == "2.0 [-10.7, 14.7]"
    assert f"{ours:.3f}" == "2.000 [-10.706, 14.706]"


def test_one_value_has_no_interval():
    ours = mean_interval([4.0])
    assert ours.mean == 4 and math.isnan(ours.low) and str(ours) == "4.0"


def test_pairs_are_those_that_both_have():
    ours = paired_difference({0: 1.0, 1: 2.0, 2: 9.0}, {0: 2.0, 1: 4.0, 3: 0.0})
    assert ours.mean == pytest.approx(1.5) and ours.n == 2
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_pairing_takes_out_what_seeds_share():
    first = {seed: 10.0 * seed for seed in range(5)}
    second = {seed: value + 1 for seed, value in first.items()}
    ours = paired_difference(first, second)
    assert (ours.low, ours.high) == pytest.approx((1, 1))


def test_ratio_of_two_means_by_hand():
    # relative deviations 0.3 and 0.4 make 0.5 together; t of three degrees of freedom is 3.1824, and the root of four passes two
    ours = mean_ratio((10.0, 3.0), (5.0, 2.0), 4)
    half = 3.182446 * 0.5 / 2
    assert (ours.mean, ours.low, ours.high, ours.n) == (
        2,
        pytest.approx(2 * math.exp(-half)),
        pytest.approx(2 * math.exp(half)),
        4,
    )
    assert math.isnan(mean_ratio((10.0, 0.0), (5.0, 0.0), 1).low) and math.isnan(
        mean_ratio((10.0, math.nan), (5.0, 1.0), 9).high
    )


def test_ratio_of_two_means_holds_the_true_one_as_often_as_it_says():
    random, hits = np.random.default_rng(0), 0
    for _ in range(2000):
        a, b = random.normal(30, 4, 20), random.normal(10, 2, 20)
        ours = mean_ratio((a.mean(), a.std(ddof=1)), (b.mean(), b.std(ddof=1)), 20)
        hits += ours.low < 3 < ours.high
    assert 0.93 < hits / 2000 < 0.98
