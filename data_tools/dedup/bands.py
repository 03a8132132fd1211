"""Lay out masks of bits so that two hashes within a distance agree in all bits of one mask at least, and count their cost.

`distance + 1` outer bands of equal width come first: two hashes within the distance agree on one of them at least. A pair
belongs to the first outer band i that it agrees on. It differs in a bit at least of each band before i, so in `distance - i`
bits at most after band i. These bits are cut into groups, as multi-index hashing does (Norouzi, Punjani, Fleet 2012): one group
differs in few bits, its reach r. The group is cut into r + k inner bands, of which k agree. A table is the choice of k inner
bands of one group; its mask is theirs and the outer band's bits. A pair belongs to the first group with k bands that agree, and
there to the table of the first k of them. So it belongs to exactly one table.

The plain choice, k of distance + k equal bands, is the case of one group. Several groups need two to three times fewer tables
for as few candidates.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_tools.dedup.perceptual_hash import HASH_BYTES

NUM_BITS = 8 * HASH_BYTES
WORD_BITS = 64
NUM_WORDS = -(-NUM_BITS // WORD_BITS)
MAX_GROUPS = 6
MAX_TABLES = 200_000  # of one outer band: more are never cheapest below 1e10 hashes
# Seconds of one core (AMD EPYC with AVX2), measured by `python -m data_tools.dedup.measure_join`.
LEFT_S = 22e-9  # a left hash and a table
RIGHT_S = 60e-9  # a right hash and a table
CANDIDATE_S = 17e-9  # two hashes that agree in a table's mask
TABLE_S = 120e-6  # a table, whatever the number of hashes
RECORD_S = 1e-6  # a hash and an outer band: 0.55 to scatter it (hashes of 10,000 photographs), the rest to read and order it
# Odd numbers without a pattern, of the fractions of the golden ratio and its kin: the high bits of a product depend on all
# bits of the other factor (Dietzfelbinger et al. 1997, multiply-shift hashing).
FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)

Mask = NDArray[np.uint64]  # (words,)
Words = NDArray[np.uint64]  # (words, N): the bits of N hashes


@dataclass(frozen=True)
class Group:
    """Holds a part of the bits that is cut into bands, of which `num_agreeing` agree if it differs in few bits."""

    bands: NDArray[np.uint64]  # (bands, words)
    num_agreeing: int

    def tables(self) -> list[tuple[int, Mask]]:
        """Return the choices of bands in order: which ones, as bits of a number, and the mask of all their bits."""
        chosen = itertools.combinations(range(len(self.bands)), self.num_agreeing)
        return [
            (sum(1 << band for band in bands), np.bitwise_or.reduce(self.bands[list(bands)], axis=0, initial=np.uint64(0)))
            for bands in chosen
        ]


@dataclass(frozen=True)
class Cut:
    """Says how the bits after an outer band are cut.

    Attributes:
        num_groups: number of groups.
        num_agreeing: inner bands of a group that a table demands.
    """

    num_groups: int
    num_agreeing: int


@dataclass(frozen=True)
class Cost:
    """Holds the estimated cost of a join."""

    seconds: float  # of one core
    num_tables: float
    num_candidates: float


def outer_band(number: int, *, width: int) -> Mask:
    """Return the mask, (words,), of an outer band."""
    return _mask(_bit_order()[number * width : (number + 1) * width])


def groups_after(number: int, *, distance: int, width: int, cut: Cut) -> list[Group]:
    """Return the groups of the bits after an outer band; without those that cannot be the first to differ in few bits."""
    bits = _bit_order()[(number + 1) * width :]
    groups: list[Group] = []
    reaches = _reaches(distance - number, cut.num_groups)
    for group_bits, reach in zip(_split(bits, cut.num_groups), reaches, strict=True):
        if reach >= 0:
            bands = [_mask(band) for band in _split(group_bits, reach + cut.num_agreeing)] if reach + cut.num_agreeing else []
            groups.append(Group(np.array(bands, np.uint64).reshape(-1, NUM_WORDS), cut.num_agreeing))
    return groups


def choose_cut(
    number: int, *, distance: int, width: int, num_left: float, num_right: float, agreed_bits: float | None = None
) -> tuple[Cut, Cost]:
    """Return the cheapest cut of the bits after an outer band, and its cost.

    Candidates are counted as if bits were fair coins. Hashes of pictures are not quite, and pairs within the distance come on
    top.

    Args:
        num_left: hashes of the left side.
        num_right: hashes of the right side.
        agreed_bits: a left and a right hash agree on the outer band with probability 2 ** -agreed_bits; its width if None.
    """
    bits = float(width if agreed_bits is None else agreed_bits)
    return _choose_cut(number, distance, width, float(num_left), float(num_right), bits)


@functools.lru_cache(maxsize=1024)
def _choose_cut(
    number: int, distance: int, width: int, num_left: float, num_right: float, agreed_bits: float
) -> tuple[Cut, Cost]:
    num_bits = NUM_BITS - (number + 1) * width
    options: list[tuple[Cut, Cost]] = []
    for num_groups in range(1, min(MAX_GROUPS, max(1, num_bits)) + 1):
        reaches = [reach for reach in _reaches(distance - number, num_groups) if reach >= 0]
        group_bits = num_bits / num_groups
        for num_agreeing in range(max(0, int(group_bits) - reaches[0]) + 1):
            counts = [math.comb(reach + num_agreeing, num_agreeing) for reach in reaches]
            num_tables = sum(counts)
            if num_tables > MAX_TABLES:
                break
            bits = [agreed_bits + group_bits * num_agreeing / max(1, reach + num_agreeing) for reach in reaches]
            candidates = sum(count * num_left * num_right / 2.0**agreed for count, agreed in zip(counts, bits, strict=True))
            seconds = num_tables * (LEFT_S * num_left + RIGHT_S * num_right + TABLE_S) + CANDIDATE_S * candidates
            options.append((Cut(num_groups, num_agreeing), Cost(seconds, num_tables, candidates)))
    return min(options, key=lambda option: option[1].seconds)


def estimate_join(num_left: float, num_right: float, *, distance: int, width: int) -> Cost:
    """Return the cost of joining two sides over all outer bands, with what it costs to exchange the hashes."""
    sides = {"num_left": num_left, "num_right": num_right}
    costs = [choose_cut(number, distance=distance, width=width, **sides)[1] for number in range(distance + 1)]
    exchange_s = (distance + 1) * (num_left + num_right) * RECORD_S
    return Cost(
        exchange_s + sum(cost.seconds for cost in costs),
        sum(cost.num_tables for cost in costs),
        sum(cost.num_candidates for cost in costs),
    )


def choose_width(num_left: float, num_right: float, *, distance: int) -> int:
    """Return the width of the outer bands that makes the join cheapest."""
    widths = range(1, min(NUM_BITS // (distance + 1), 24) + 1)
    return min(widths, key=lambda width: estimate_join(num_left, num_right, distance=distance, width=width).seconds)


def as_words(bits: NDArray[np.uint8]) -> Words:
    """Return hashes, (N, bytes), as words, (words, N)."""
    padded = np.zeros((len(bits), NUM_WORDS * WORD_BITS // 8), np.uint8)
    padded[:, : bits.shape[1]] = bits
    return np.ascontiguousarray(padded.view(np.uint64).T)


@functools.lru_cache(maxsize=1)
def _bit_order() -> list[int]:
    """Return the order in which bits are dealt to bands.

    The words are used up one after the other, so that most masks are in one or two of them. Within a word, bits that follow
    each other are of distant frequencies: neighbouring ones depend on each other.
    """
    short = range((NUM_WORDS - 1) * WORD_BITS, NUM_BITS)
    stride = 25  # prime to a word's bits; in rows of 12 frequencies it is two rows down and one aside
    words = [[WORD_BITS * word + stride * bit % WORD_BITS for bit in range(WORD_BITS)] for word in range(NUM_WORDS - 1)]
    return [*short, *itertools.chain.from_iterable(words)]


def _mask(bits: list[int]) -> Mask:
    mask = [0] * NUM_WORDS
    for bit in bits:
        mask[bit // WORD_BITS] |= 1 << bit % WORD_BITS
    return np.array(mask, np.uint64)


def _split(bits: list[int], num_parts: int) -> list[list[int]]:
    """Cut a row into parts whose lengths differ by one at most."""
    edges = [len(bits) * part // num_parts for part in range(num_parts + 1)]
    return [bits[low:high] for low, high in itertools.pairwise(edges)]


def _reaches(distance: int, num_groups: int) -> list[int]:
    """Return in how many bits each group may differ, one of which does so if all differ in `distance`; -1 for none.

    If the first a + 1 groups differed in more than r bits and the others in more than r - 1, all would differ in more than
    r * groups + a = distance.
    """
    reach, rest = divmod(distance, num_groups)
    return [reach if number <= rest else reach - 1 for number in range(num_groups)]
