"""How sure a mean over seeds is. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
import math

import numpy as np
from scipy.special import (
    stdtrit,  # a fifth of the import of scipy.stats, which `rflw claims` would wait for
)


@dataclass(frozen=True)
class Interval:
    """A mean of n values and the interval that holds the true mean with the given confidence, in the values' unit."""

    mean: float
    low: float  # nan for n = 1: one value knows nothing of its spread
    high: float
    n: int

    def __format__(self, spec: str) -> str:
        """ "1.23 [1.10, 1.36]": `spec` is that of each number, ".1f" where it is empty."""
        spread = (
            ""
            if math.isnan(self.low)
            else f" [{self.low:{spec or '.1f'}}, {self.high:{spec or '.1f'}}]"
        )
        return f"{self.mean:{spec or '.1f'}}{spread}"

    def __str__(self) -> str:
        return format(self)

    def row(self) -> dict:
        """For a record: {"mean", "low", "high", "n"}, None for a number that is not known."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval of the mean (Student, 1908): seeds are few, and their spread is not known."""
    values = np.asarray(values, dtype=float)
    n, mean = len(values), float(values.mean())
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    half = stdtrit(n - 1, (1 + level) / 2) * values.std(ddof=1) / math.sqrt(n)
    return Interval(mean, float(mean - half), float(mean + half), n)


def paired_difference(
    first: Mapping[int, float], second: Mapping[int, float], level: float = 0.95
) -> Interval | None:
    """{seed: value} of two forms -> the interval of second - first over the seeds that both have, None where there is none.
    A seed fixes the order of the images and their crops, so that what it adds to both cancels."""
    seeds = sorted(first.keys() & second.keys())
    return mean_interval([second[seed] - first[seed] for seed in seeds], level) if seeds else None


def mean_ratio(
    over: tuple[float, float], under: tuple[float, float], n: int, level: float = 0.95
) -> Interval:
    """The ratio of two positive means, each given as (mean, standard deviation) of n independent values, with its interval: of the
    logarithm, whose deviation follows from both (delta method), with Student's t of n - 1."""
    ratio = over[0] / under[0]
    if n < 2 or math.isnan(over[1] + under[1]):
        return Interval(ratio, math.nan, math.nan, n)
    half = (
        stdtrit(n - 1, (1 + level) / 2)
        * math.hypot(over[1] / over[0], under[1] / under[0])
        / math.sqrt(n)
    )
    return Interval(ratio, ratio * math.exp(-half), ratio * math.exp(half), n)
