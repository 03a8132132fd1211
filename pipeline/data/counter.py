"""Counter-based random numbers: a value depends on its key alone, never on what was drawn before.

SplitMix64's finalizer (Steele, Lea and Flood, OOPSLA 2014) in plain integer arithmetic, so the numbers are the same
under every version of numpy and torch, on every machine. That is what lets a run be resumed years later.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Uint64s = NDArray[np.uint64]

_GOLDEN_INT, _MIX_1_INT, _MIX_2_INT = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_GOLDEN, _MIX_1, _MIX_2 = np.uint64(_GOLDEN_INT), np.uint64(_MIX_1_INT), np.uint64(_MIX_2_INT)
_MASK = (1 << 64) - 1


def mix(values: Uint64s) -> Uint64s:
    """SplitMix64's output function, element by element: a bijection of 64-bit integers."""
    with np.errstate(over="ignore"):
        values = values + _GOLDEN
        values = (values ^ (values >> np.uint64(30))) * _MIX_1
        values = (values ^ (values >> np.uint64(27))) * _MIX_2
        return values ^ (values >> np.uint64(31))


def derive_key(*parts: int) -> int:
    """One 64-bit key from a tuple of integers, for example (seed, purpose, epoch)."""
    state = 0
    for part in parts:  # plain integers: for one value they are faster than arrays, and the same numbers
        state = ((state ^ part) + _GOLDEN_INT) & _MASK
        state = ((state ^ (state >> 30)) * _MIX_1_INT) & _MASK
        state = ((state ^ (state >> 27)) * _MIX_2_INT) & _MASK
        state ^= state >> 31
    return state


def random_bits(key: int, counters: NDArray[np.integer]) -> Uint64s:
    """64 random bits for each counter under `key`."""
    return mix(mix(counters.astype(np.uint64)) ^ np.uint64(key))


def uniforms(key: int, count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) under `key`, 53 bits each."""
    return (random_bits(key, np.arange(count)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(key: int, length: int) -> NDArray[np.int64]:
    """A permutation of range(length): the order in which random bits sort."""
    return np.argsort(random_bits(key, np.arange(length)), kind="stable")
