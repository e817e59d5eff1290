"""Intervals over seeds, against scipy's own and by hand."""

import math

import pytest
from scipy import stats
import yaml

from rflw.records import REPOSITORY
from rflw_study import statistics


def test_intervals_of_means():
    values = [65.2, 64.1, 66.0, 65.5]
    ours = statistics.mean_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=65.2, scale=stats.sem(values))
    assert (ours.mean, ours.low, ours.high, ours.n) == (*map(pytest.approx, (65.2, low, high)), 4)
    # the deviation of 1 and 3 is sqrt(2), its error 1, and t of one degree of freedom 12.7062
    two = statistics.mean_interval([1.0, 3.0])
    assert str(two) == "2.0 [-10.7, 14.7]" and f"{two:.3f}" == "2.000 [-10.706, 14.706]"
    alone = statistics.mean_interval([4.0])
    assert alone.mean == 4 and math.isnan(alone.low) and str(alone) == "4.0"


def test_pairs_are_those_that_both_have():
    ours = statistics.paired_difference({0: 1.0, 1: 2.0, 2: 9.0}, {0: 2.0, 1: 4.0, 3: 0.0})
    assert ours.mean == pytest.approx(1.5) and ours.n == 2
    # gaps of 1 and 2: their deviation is 1 / sqrt(2), their error 1 / 2
    assert ours.high == pytest.approx(1.5 + 12.7062 / 2, abs=1e-4)
    assert statistics.paired_difference({0: 1.0}, {1: 1.0}) is None


def test_ratio_of_two_means_by_hand():
    # Relative deviations of 0.3 and 0.4 make 0.5 together; t of three degrees of freedom is 3.1824,
    # and the root of four passes two.
    ours = statistics.mean_ratio((10.0, 3.0), (5.0, 2.0), 4)
    half = 3.182446 * 0.5 / 2
    assert ours.mean == 2 and ours.n == 4
    assert (ours.low, ours.high) == pytest.approx((2 * math.exp(-half), 2 * math.exp(half)))
    assert math.isnan(statistics.mean_ratio((10.0, 0.0), (5.0, 0.0), 1).low)
    assert math.isnan(statistics.mean_ratio((10.0, math.nan), (5.0, 1.0), 9).high)


# The deviation of (m - 1, m, m + 1) is 1, its error 1 / sqrt(3), and t of two degrees of freedom at
# 95 % 2.919986: the interval reaches 1.685855 to either side of m.
HALF = 1.685855


@pytest.mark.parametrize(
    ("mean", "margin", "outcome"),
    [
        (0.0, HALF + 1e-3, "equivalent"),
        (0.0, HALF - 1e-3, "undecided"),
        (-1.0, HALF + 1 - 1e-3, "undecided"),
        (-HALF - 1e-3, 2 * HALF + 1e-2, "worse by less than the margin"),
        (-HALF - 1e-3, 2 * HALF - 1e-2, "undecided"),
        (-HALF - 1 - 1e-3, 1.0, "worse"),
        (-HALF - 1 + 1e-3, 1.0, "undecided"),
        (HALF + 1e-3, 1.0, "better"),
        (HALF + 1e-3, 2 * HALF + 1e-2, "equivalent"),
        (HALF - 1e-3, 1.0, "undecided"),
    ],
)
def test_equivalence_by_hand(mean, margin, outcome):
    protocol = yaml.safe_load((REPOSITORY / "data/protocol.yaml").read_text())
    found = statistics.equivalence([mean - 1, mean, mean + 1], margin)
    assert found == outcome and outcome in protocol["outcomes"]
    two = statistics.equivalence([9.0, 9.1], margin=1.0)
    assert protocol["least_seeds"] == 3 and two == "undecided"


def test_p_values_against_scipy_s_t_tests():
    gaps = [0.4, 0.1, -0.3, 0.5, 0.2]

    def p(limit, side):
        return stats.ttest_1samp(gaps, limit, alternative=side).pvalue

    expected = {
        "equivalent": max(p(-1, "greater"), p(1, "less")),
        "worse by less than the margin": max(p(-1, "greater"), p(0, "less")),
        "worse": p(-1, "less"),
        "better": p(0, "greater"),
        "more": p(1, "greater"),
        "less": p(1, "less"),
        "undecided": 1.0,
    }
    found = {each: statistics.p_value(gaps, each, 1.0) for each in expected}
    assert found == pytest.approx(expected)
    assert statistics.p_value([1.0, 1.0, 1.0], "worse", 1.0) == 1  # no spread at all


def test_holm_by_hand():
    adjusted = [0.03, 0.06, 0.06, 0.02]  # 4 x .005, 3 x .01, 2 x .03, .04
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx(adjusted)
    assert statistics.holm([]) == []
