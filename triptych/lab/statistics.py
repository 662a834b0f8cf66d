"""Means over seeds, paired differences, and what an interval says of a paper's finding."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from triptych.lab.definition import Direction

CONFIDENCE = 0.95

Verdict = Literal["agrees", "disagrees", "cannot tell"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % interval; without ends where one value alone gives none.

    Attributes:
        mean: Of the values.
        low: Lower end.
        high: Upper end.
    """

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of values with its 95 % t interval.

    Args:
        values: At least one; one alone has no interval.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """Return Student's t that a two-sided interval of a mean reaches to.

    Args:
        freedom: Degrees of freedom, values minus one.
        confidence: Of the interval.
    """
    low, high = 0.0, 1.0
    while _inside(high, freedom) < confidence:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, freedom) < confidence else (low, middle)
    return (low + high) / 2


def _inside(t: float, freedom: int) -> float:
    """Return the probability of -t to t, by the finite sums for whole degrees of freedom.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2 == 1
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def judge(found: Interval, predicts: Direction, margin: float = 0.0) -> Verdict:
    """Return whether a difference bears out what a paper found.

    Args:
        found: First variant minus second.
        predicts: What the paper says of the first.
        margin: Of "equal": the largest difference that counts as none.
    """
    if found.low is None or found.high is None:
        return "cannot tell"
    if predicts == "equal":
        if -margin <= found.low and found.high <= margin:
            return "agrees"
        return "disagrees" if found.low > margin or found.high < -margin else "cannot tell"
    low, high = (found.low, found.high) if predicts == "higher" else (-found.high, -found.low)
    if low > 0:
        return "agrees"
    return "disagrees" if high < 0 else "cannot tell"
