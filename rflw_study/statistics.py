"""How sure a mean over seeds is, and what a difference of two forms decides. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
import math

import numpy as np
from scipy.special import stdtr, stdtrit  # a fifth of the import of scipy.stats


@dataclass(frozen=True)
class Interval:
    """A mean of n values, and the interval that holds the true mean with the given confidence."""

    mean: float
    low: float  # nan for n = 1: one value knows nothing of its spread
    high: float
    n: int

    def __format__(self, spec: str) -> str:
        """ "1.23 [1.10, 1.36]": `spec` is that of each number, ".1f" where it is empty."""
        mean, low, high = (f"{x:{spec or '.1f'}}" for x in (self.mean, self.low, self.high))
        return mean if math.isnan(self.low) else f"{mean} [{low}, {high}]"

    def __str__(self) -> str:
        return format(self)

    def row(self) -> dict:
        """For a record: {"mean", "low", "high", "n"}, None for a number that is not known."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval of the mean (Student, 1908): seeds are few, their spread is unknown."""
    values = np.asarray(values, dtype=float)
    n, mean = len(values), float(values.mean())
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    half = stdtrit(n - 1, (1 + level) / 2) * values.std(ddof=1) / math.sqrt(n)
    return Interval(mean, float(mean - half), float(mean + half), n)


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float], level: float = 0.95
) -> Interval | None:
    """{seed: value} of two forms -> the interval of second - first; None without a shared seed.

    A seed fixes the order of the images and their crops: what it adds to both cancels.
    """
    seeds = sorted(first.keys() & second.keys())
    return mean_interval([second[seed] - first[seed] for seed in seeds], level) if seeds else None


def mean_ratio(
    over: tuple[float, float], under: tuple[float, float], n: int, level: float = 0.95
) -> Interval:
    """The ratio of two positive means, each (mean, standard deviation) of n independent values.

    Its interval is that of the logarithm, whose deviation follows from both (delta method).
    """
    ratio = over[0] / under[0]
    if n < 2 or math.isnan(over[1] + under[1]):
        return Interval(ratio, math.nan, math.nan, n)
    deviation = math.hypot(over[1] / over[0], under[1] / under[0])
    half = stdtrit(n - 1, (1 + level) / 2) * deviation / math.sqrt(n)
    return Interval(ratio, ratio * math.exp(-half), ratio * math.exp(half), n)


def equivalence(
    differences: Sequence[float], margin: float, level: float = 0.90, least_seeds: int = 3
) -> str:
    """What paired differences of two forms decide, by the rules of data/protocol.yaml.

    An interval of 90 % is two one-sided tests at 5 % each (Schuirmann, 1987). One that lies between
    minus the margin and 0 has an outcome of its own, though it is equivalent, too.

    Args:
        differences: Score of the form that the paper prefers minus that of the other, one a seed.
        margin: The smallest difference that matters, in the same unit.
        level: Of Student's t interval.
        least_seeds: Fewer decide nothing.

    Returns:
        "equivalent", "worse by less than the margin", "worse", "better" or "undecided".
    """
    if len(differences) < least_seeds:
        return "undecided"
    interval = mean_interval(differences, level)
    if interval.high < -margin:
        return "worse"
    if -margin < interval.low and interval.high < 0:
        return "worse by less than the margin"
    if -margin < interval.low and interval.high < margin:
        return "equivalent"
    return "better" if interval.low > 0 else "undecided"


def p_value(differences: Sequence[float], outcome: str, margin: float = 0.0) -> float:
    """How likely such differences are if an outcome is false: the largest p of its one-sided tests.

    Args:
        differences: One a seed, two at least.
        outcome: Of `equivalence`; or "more" or "less" than the margin.
        margin: As of `equivalence`.
    """
    n, mean = len(differences), np.mean(differences)
    error = np.std(differences, ddof=1) / math.sqrt(n) or 1e-12

    def less(limit: float) -> float:
        return float(stdtr(n - 1, (mean - limit) / error))

    return {
        "equivalent": max(1 - less(-margin), less(margin)),
        "worse by less than the margin": max(1 - less(-margin), less(0)),
        "worse": less(-margin),
        "better": 1 - less(0),
        "more": 1 - less(margin),
        "less": less(margin),
        "undecided": 1.0,
    }[outcome]


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of one family, in any order -> adjusted for it, in the same order (Holm, 1979)."""
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values)
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted.tolist()
