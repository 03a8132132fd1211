"""Find all pairs of bit strings within a Hamming distance, by an index instead of comparing each with each.

The method is multi-index hashing (Norouzi, Punjani, Fleet 2012): cut the strings into m parts. If two of them differ in at most
radius = m * k + a bits, then they differ in at most k bits in one of the first a + 1 parts, or in at most k - 1 bits in one of
the others: otherwise they would differ in more than `radius` bits in all. So the strings are sorted by each part, a query looks
up everything within that distance of its part, and what it finds is compared in full. The result is exact.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_PART_BITS = 24
QUERIES_AT_ONCE = 1 << 15
CANDIDATES_AT_ONCE = 1 << 21
COST_OF_CANDIDATE = 4.0  # in look-ups, measured
LOOK_UP_S = 13e-9  # of one core (AMD EPYC with AVX2), measured with 10^6 entries
UNCACHED_ENTRIES, UNCACHED_FACTOR = 10**7, 3.0  # with so many, each look-up reads memory

Bits = NDArray[np.uint8]  # (N, bytes)


@dataclass(frozen=True)
class Pairs:
    """Holds pairs within the radius, sorted by query, then entry."""

    query: NDArray[np.int64]
    entry: NDArray[np.int64]
    distance: NDArray[np.int64]


@dataclass(frozen=True)
class _Chunk:
    """Holds the entries sorted by one part of their bits."""

    flips: NDArray[np.int32]  # values to XOR with a query's part to get all that it may match
    first: NDArray[np.int32]  # (2**bits + 1,): where each value begins in `order`
    order: NDArray[np.int32]  # (N,)


class HammingIndex:
    """Finds entries within `radius` bits of a query. `build` or `open` makes one."""

    def __init__(self, words: NDArray[np.uint64], parts: list[_Chunk], *, num_bits: int, radius: int) -> None:
        self.num_bits, self.radius = num_bits, radius
        self._words = words  # (N, words)
        self._parts = parts

    @classmethod
    def build(cls, bits: Bits, *, radius: int) -> HammingIndex:
        """Sort the entries, (N, bytes) with N below 2**31, by each part; `radius` is at most a third of all bits."""
        num_bits = 8 * bits.shape[1]
        if not 0 <= radius <= num_bits // 3:
            raise ValueError(f"radius {radius} is not from 0 to {num_bits // 3}: an index is of no use beyond")
        num_parts = choose_num_parts(len(bits), num_bits=num_bits, radius=radius)
        layout = zip(_part_bits(num_bits, num_parts), _part_radii(radius, num_parts), strict=True)
        parts: list[_Chunk] = []
        for number, (width, reach) in enumerate(layout):
            values = _take_part(bits, number, num_parts)
            first = np.zeros(2**width + 1, np.int32)
            np.cumsum(np.bincount(values, minlength=2**width), out=first[1:])
            parts.append(_Chunk(_flips(width, reach), first, np.argsort(values, kind="stable").astype(np.int32)))
        return cls(_as_words(bits), parts, num_bits=num_bits, radius=radius)

    def save(self, folder: Path) -> None:
        """Write the index to a folder, for many processes to open."""
        folder.mkdir(parents=True)
        np.save(folder / "words.npy", self._words)
        for number, part in enumerate(self._parts):
            for name, array in vars(part).items():
                np.save(folder / f"{name}-{number}.npy", array)
        numbers = {"num_parts": len(self._parts), "num_bits": self.num_bits, "radius": self.radius}
        (folder / "about.json").write_text(json.dumps(numbers))

    @classmethod
    def open(cls, folder: Path) -> HammingIndex:
        """Map what `save` wrote. All processes share its pages."""
        about = json.loads((folder / "about.json").read_text())
        names = [field.name for field in fields(_Chunk)]
        parts = [
            _Chunk(*(map_array(folder / f"{name}-{number}.npy") for name in names)) for number in range(about["num_parts"])
        ]
        return cls(map_array(folder / "words.npy"), parts, num_bits=about["num_bits"], radius=about["radius"])

    def search(self, queries: Bits) -> Pairs:
        """Return all pairs of a query and an entry within the radius, each once."""
        found = [
            self._search_part(part, queries[start : start + QUERIES_AT_ONCE], start)
            for start in range(0, len(queries), QUERIES_AT_ONCE)
            for part in range(len(self._parts))
        ]
        joined = np.concatenate([np.zeros((0, 3), np.int64), *(rows for group in found for rows in group)])
        # The same pair is found in every part that the two agree in.
        unique = np.unique(joined[:, 0] * max(1, len(self._words)) + joined[:, 1], return_index=True)[1]
        return Pairs(*joined[unique].T)

    def _search_part(self, number: int, queries: Bits, start: int) -> list[NDArray[np.int64]]:
        part = self._parts[number]
        if not len(part.flips):
            return []
        values = _take_part(queries, number, len(self._parts))
        sorted_queries = np.argsort(values, kind="stable")  # neighbours look up the same memory
        values, words = values[sorted_queries], _as_words(queries)[sorted_queries]
        found: list[NDArray[np.int64]] = []
        for flip in part.flips:
            value = values ^ flip
            first = part.first.take(value)
            count = part.first.take(value + 1) - first
            for low, high in _cut(count):
                rows = self._compare(part, words[low:high], first[low:high], count[low:high])
                rows[:, 0] = sorted_queries[rows[:, 0] + low] + start
                found.append(rows)
        return found

    def _compare(
        self, part: _Chunk, words: NDArray[np.uint64], first: NDArray[np.int32], count: NDArray[np.int32]
    ) -> NDArray[np.int64]:
        """Return (query, entry, distance) of near pairs: each query with its entries in order[first : first + count]."""
        ends = np.cumsum(count, dtype=np.int32)
        query = np.repeat(np.arange(len(words), dtype=np.int32), count)
        entry = part.order.take(np.repeat(first - (ends - count), count) + np.arange(len(query), dtype=np.int32))
        differing = np.bitwise_count(words.take(query, axis=0) ^ self._words.take(entry, axis=0))
        distance = sum((differing[:, word] for word in range(1, differing.shape[1])), start=differing[:, 0].astype(np.int32))
        near = np.flatnonzero(distance <= self.radius)
        return np.stack([query[near], entry[near], distance[near]], axis=1).astype(np.int64)


def map_array(path: Path) -> NDArray[Any]:
    """Map an array file's pages. An array that has none to map is returned itself."""
    array = np.load(path, mmap_mode=None if path.stat().st_size < 256 else "r")
    return array.view(np.ndarray)


def estimate_search(num_entries: int, *, num_bits: int, radius: int) -> float:
    """Return the seconds of one core that a query takes, if values were spread evenly."""
    parts = choose_num_parts(num_entries, num_bits=num_bits, radius=radius)
    uncached = min(1.0, num_entries / UNCACHED_ENTRIES)
    look_up_s = LOOK_UP_S * (1 + (UNCACHED_FACTOR - 1) * uncached)
    return look_up_s * _query_cost(num_entries, num_bits, radius, parts)


def choose_num_parts(num_entries: int, *, num_bits: int, radius: int) -> int:
    """Return the number of parts that makes a query cheapest: few look-ups, or few candidates to compare."""
    fewest = -(-num_bits // MAX_PART_BITS)
    return min(range(fewest, num_bits + 1), key=lambda parts: _query_cost(num_entries, num_bits, radius, parts))


def _query_cost(num_entries: int, num_bits: int, radius: int, num_parts: int) -> float:
    """Return the cost of a query: look-ups plus candidates, if values were spread evenly."""
    cost = 0.0
    for width, reach in zip(_part_bits(num_bits, num_parts), _part_radii(radius, num_parts), strict=True):
        look_ups = sum(math.comb(width, flipped) for flipped in range(reach + 1))
        cost += look_ups * (1 + COST_OF_CANDIDATE * num_entries / 2**width)
    return cost


def _part_radii(radius: int, num_parts: int) -> list[int]:
    """Return how many bits each part may differ in; -1 for parts that need no look-up."""
    reach, rest = divmod(radius, num_parts)
    return [reach if number <= rest else reach - 1 for number in range(num_parts)]


def _part_bits(num_bits: int, num_parts: int) -> list[int]:
    return [len(range(number, num_bits, num_parts)) for number in range(num_parts)]


def _flips(width: int, reach: int) -> NDArray[np.int32]:
    chosen = (bits for flipped in range(reach + 1) for bits in itertools.combinations(range(width), flipped))
    return np.array([sum(1 << bit for bit in bits) for bits in chosen], np.int32)


def _take_part(bits: Bits, number: int, num_parts: int) -> NDArray[np.int32]:
    """Return every num_parts-th bit from `number` on, as a number, so that neighbouring frequencies go to different parts."""
    pieces = [np.unpackbits(bits[i : i + (1 << 16)], axis=1)[:, number::num_parts] for i in range(0, len(bits), 1 << 16)]
    weights = [(piece @ (1 << np.arange(piece.shape[1], dtype=np.int32))).astype(np.int32) for piece in pieces]
    return np.concatenate([np.zeros(0, np.int32), *weights])


def _as_words(bits: Bits) -> NDArray[np.uint64]:
    padded = np.zeros((len(bits), -(-bits.shape[1] // 8) * 8), np.uint8)
    padded[:, : bits.shape[1]] = bits
    return padded.view(np.uint64)


def _cut(count: NDArray[np.int32]) -> list[tuple[int, int]]:
    """Yield ranges of queries with a bounded number of candidates each, if more than one query shares them."""
    if int(count.sum(dtype=np.int64)) <= CANDIDATES_AT_ONCE:
        return [(0, len(count))]
    group = np.cumsum(count, dtype=np.int64) // CANDIDATES_AT_ONCE
    edges = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(count)]
    return list(itertools.pairwise(edges))
