"""Draw counter-based random numbers: a value depends on its key alone, never on earlier draws.

The generator is SplitMix64's finalizer (Steele, Lea and Flood, OOPSLA 2014) in plain integer arithmetic, so the numbers are the
same under every version of numpy and torch, on every machine. Therefore a run can be resumed years later.
"""

from __future__ import annotations

import functools
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Uint64s = NDArray[np.uint64]

_GOLDEN_INT, _MIX_1_INT, _MIX_2_INT = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_GOLDEN, _MIX_1, _MIX_2 = np.uint64(_GOLDEN_INT), np.uint64(_MIX_1_INT), np.uint64(_MIX_2_INT)
_MASK = (1 << 64) - 1


class Purpose(IntEnum):
    """Says what a key's numbers are for, so that no two uses share a key."""

    BLOCKS_OF_EPOCH = 1  # seed, epoch
    INSIDE_BLOCK = 2  # seed, epoch, block
    AUGMENTATION = 3  # seed, epoch, sample id; of crop and flip
    DROPOUT = 4  # seed, step, micro-step, rank
    MAKE_SHUFFLE = 5  # seed
    STREAM_PHASE = 6  # seed, epoch
    MIXTURE = 7  # seed; seed, corpus
    UNINDEXED = 8  # seed, first step, rank, worker
    OPERATIONS = 9  # seed, epoch, sample id, draw; of an augmentation law
    ERASING = 10  # seed, epoch, sample id, draw
    MIXING = 11  # seed; the counter is the number of a pair
    MASKING = 12  # seed; the counter is a position
    OBJECTIVE = 13  # seed


def mix(values: Uint64s) -> Uint64s:
    """Apply SplitMix64's output function, a bijection of 64-bit integers, element by element."""
    with np.errstate(over="ignore"):
        values = values + _GOLDEN
        values = (values ^ (values >> np.uint64(30))) * _MIX_1
        values = (values ^ (values >> np.uint64(27))) * _MIX_2
        return values ^ (values >> np.uint64(31))


def derive_key(*parts: int) -> int:
    """Return one 64-bit key from a tuple of integers, for example (seed, purpose, epoch)."""
    state = 0
    for part in parts:
        state = mix_one(state ^ part)
    return state


def mix_one(value: int) -> int:
    """Apply `mix` to one value: for few values plain integers are faster than arrays."""
    value = (value + _GOLDEN_INT) & _MASK
    value = ((value ^ (value >> 30)) * _MIX_1_INT) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2_INT) & _MASK
    return value ^ (value >> 31)


def random_bits(key: int, counters: NDArray[np.integer]) -> Uint64s:
    """Return 64 random bits for each counter under `key`."""
    return mix(mix(counters.astype(np.uint64)) ^ np.uint64(key))


def uniforms(key: int, count: int) -> NDArray[np.float64]:
    """Return `count` numbers in [0, 1) under `key`, 53 bits each."""
    return (random_bits(key, np.arange(count)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def keyed_uniforms(key: int, counters: NDArray[np.integer], *, first: int, count: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) under `key` for each counter: those from number `first` on, (len(counters), count)."""
    keys = random_bits(key, counters)[:, None]
    bits = mix(mix(np.arange(first, first + count).astype(np.uint64))[None] ^ keys)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def few_uniforms(key: int, count: int) -> list[float]:
    """Return the first of `uniforms`, where only a few are needed."""
    return [(mix_one(bits ^ key) >> 11) * 2.0**-53 for bits in _mixed_counters(count)]


@functools.cache
def _mixed_counters(count: int) -> list[int]:
    return [mix_one(counter) for counter in range(count)]


def permutation(key: int, length: int) -> NDArray[np.int64]:
    """Return a permutation of range(length): the order in which random bits sort."""
    return np.argsort(random_bits(key, np.arange(length)), kind="stable")


class Permutation:
    """Computes the values of a permutation of range(length) one by one, in both directions.

    A short permutation is sorted once and kept. A long one is a Feistel network (Luby and Rackoff 1988) on the smallest power
    of two that holds `length`, walked until it lands inside (Black and Rogaway 2002). Nothing is stored, so a worker that needs
    a thousandth of ten million values pays for a thousandth.
    """

    SORTED_UP_TO = 1 << 16
    ROUNDS = 8

    def __init__(self, key: int, length: int) -> None:
        self.length = length
        self._sorted = permutation(key, length) if length <= self.SORTED_UP_TO else None
        num_bits = max(2, (length - 1).bit_length())
        self._low_bits = np.uint64(num_bits // 2)
        self._low_mask = np.uint64((1 << (num_bits // 2)) - 1)
        self._high_mask = np.uint64((1 << (num_bits - num_bits // 2)) - 1)
        self._round_keys = [np.uint64(derive_key(key, turn)) for turn in range(self.ROUNDS)]

    def __call__(self, indices: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the values at these indices."""
        if self._sorted is not None:
            return self._sorted[indices]
        return self._walk(indices, range(self.ROUNDS))

    def inverse(self, values: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the indices of these values."""
        if self._sorted is not None:
            return np.argsort(self._sorted)[values]
        return self._walk(values, range(self.ROUNDS - 1, -1, -1))

    def _walk(self, numbers: NDArray[np.integer], rounds: range) -> NDArray[np.int64]:
        result = self._shuffle_bits(numbers.astype(np.uint64), rounds)
        while (outside := np.flatnonzero(result >= self.length)).size:  # fewer than half each time
            result[outside] = self._shuffle_bits(result[outside], rounds)
        return result.astype(np.int64)

    def _shuffle_bits(self, numbers: Uint64s, rounds: range) -> Uint64s:
        high, low = numbers >> self._low_bits, numbers & self._low_mask
        for turn in rounds:  # a round changes one half by the other, so it inverts itself
            if turn % 2:
                high = high ^ (mix(low ^ self._round_keys[turn]) & self._high_mask)
            else:
                low = low ^ (mix(high ^ self._round_keys[turn]) & self._low_mask)
        return (high << self._low_bits) | low
