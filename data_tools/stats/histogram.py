"""Count by value, merge the counts of any number of shards in bounded memory, and read figures from them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

LOG_STEP = math.log(1.005)  # width of the bins of values that are nearly all different: half a percent
PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)


def log_bin(value: float) -> int:
    """Return the number of the bin, half a percent wide, that holds a positive value."""
    return round(math.log(value) / LOG_STEP)


def bin_value(number: int) -> float:
    """Return the middle of a bin."""
    return math.exp(number * LOG_STEP)


def percentiles(counts: Mapping[float, int]) -> dict[str, float]:
    """Return nearest-rank percentiles of the values; none if there are no values."""
    if not counts:
        return {}
    values, numbers = (np.array(column) for column in zip(*sorted(counts.items()), strict=True))
    reached = np.cumsum(numbers)
    bins = np.searchsorted(reached, np.array(PERCENTILES) / 100 * reached[-1] * (1 - 1e-12))
    return {_name(percentile): float(values[bin_index]) for percentile, bin_index in zip(PERCENTILES, bins, strict=True)}


def _name(percentile: int) -> str:
    return {0: "min", 50: "median", 100: "max"}.get(percentile, f"p{percentile}")


def effective_number(counts: Mapping[int, int]) -> float:
    """Return exp(entropy) of the shares: as many classes of equal size would be as hard to guess."""
    numbers = np.array([count for count in counts.values() if count], np.float64)
    if not len(numbers):
        return 0.0
    shares = numbers / numbers.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
