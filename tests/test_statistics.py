"""Intervals over seeds, against scipy's own and by hand."""
import math

import pytest
from scipy import stats

from rflw.analysis.statistics import mean_interval, paired_difference


def test_against_a_t_interval():
    values = [65.2, 64.1, 66.0, 65.5]
    ours = mean_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=ours.mean, scale=stats.sem(values))
    assert (ours.low, ours.high) == pytest.approx((low, high)) and ours.n == 4 and ours.mean == pytest.approx(65.2)


def test_two_values_by_hand():
    # deviation of 1 and 3 is sqrt(2), its error 1, and t of one degree of freedom 12.706
    ours = mean_interval([1.0, 3.0])
    assert (ours.mean, ours.low, ours.high) == pytest.approx((2, 2 - 12.7062, 2 + 12.7062), abs=1e-4)
    assert str(ours) == "2.0 [-10.7, 14.7]"


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
