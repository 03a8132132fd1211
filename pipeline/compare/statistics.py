"""Judge differences of two accuracies: intervals and p-values as pure functions of numbers.

Two kinds of chance are judged apart. The choice of test images: two proportions, as if each run had test images of its own. The
same images serve both, and easy images are easy for both, so this is conservative. The draw of training images for a few-shot
probe: the differences at each seed, whose draws are the same in both runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

LEVEL = 0.05
_Z = NormalDist().inv_cdf(1 - LEVEL / 2)  # 1.96
_MOST_TERMS = 500
_TINY = 1e-300


@dataclass(frozen=True)
class Tested:
    """Holds a difference's two-sided p-value and 95 % interval."""

    p: float
    low: float
    high: float


def compare_proportions(a: float, b: float, *, count_a: int, count_b: int) -> Tested:
    """Test b - a of two proportions.

    The p-value is that of the pooled normal approximation, which is the chi-squared test of the 2x2 table without a correction
    (Agresti, Categorical Data Analysis, section 3.2). The interval is Newcombe's hybrid of two Wilson intervals (Newcombe 1998,
    Statistics in Medicine 17:873, method 10). It also holds near 0 and 1, where `ci95`'s approximation has no width.

    Args:
        a: one proportion, 0 to 1.
        b: the other one.
        count_a: number of images behind `a`.
        count_b: number of images behind `b`.
    """
    pooled = (a * count_a + b * count_b) / (count_a + count_b)
    variance = pooled * (1 - pooled) * (1 / count_a + 1 / count_b)
    p = 1.0 if variance <= 0 else math.erfc(abs(b - a) / math.sqrt(2 * variance))
    (low_a, high_a), (low_b, high_b) = wilson(a, count=count_a), wilson(b, count=count_b)
    low = b - a - math.hypot(b - low_b, high_a - a)
    high = b - a + math.hypot(high_b - b, a - low_a)
    return Tested(p, low, high)


def wilson(value: float, *, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a proportion (Wilson 1927)."""
    share = _Z**2 / count
    centre = (value + share / 2) / (1 + share)
    half = _Z / (1 + share) * math.sqrt(value * (1 - value) / count + share / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def compare_pairs(differences: Sequence[float]) -> Tested | None:
    """Test the mean of paired differences by Student's t; None for fewer than two, or where all are equal (no spread)."""
    if len(differences) < 2:
        return None
    mean, freedom = fmean(differences), len(differences) - 1
    error = stdev(differences) / math.sqrt(len(differences))
    if error <= 1e-12:
        return None
    half = error * _solve(lambda t: student_tails(t, freedom=freedom), LEVEL)
    return Tested(student_tails(abs(mean) / error, freedom=freedom), mean - half, mean + half)


def student_tails(t: float, *, freedom: int) -> float:
    """Return the probability that |T| is above t >= 0, by the incomplete beta function (DLMF 8.17)."""
    return _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def correct(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down rule (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def _solve(falling: Callable[[float], float], level: float) -> float:
    """Return where a function that falls from 1 at 0 reaches a level, by bisection."""
    low, high = 0.0, 1.0
    while falling(high) > level:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > level else (low, middle)
    return high


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function: by its continued fraction (DLMF 8.17.22), on the side that converges."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / (a * _continued_fraction(x, a, b))


def _continued_fraction(x: float, a: float, b: float) -> float:
    """Return 1 + d1 / (1 + d2 / (1 + ...)) by Lentz's method."""
    value, numerator, denominator = 1.0, 1.0, 0.0
    for term in range(1, _MOST_TERMS):
        half = term // 2
        if term % 2:
            factor = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        else:
            factor = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        denominator = 1 / ((1 + factor * denominator) or _TINY)
        numerator = (1 + factor / numerator) or _TINY
        value *= numerator * denominator
        if abs(numerator * denominator - 1) < 1e-15:
            break
    return value
