"""Find all pairs of a left and a right hash within a distance that belong to one outer band, in memory: see `bands`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_tools.dedup.bands import FACTORS, NUM_BITS, NUM_WORDS, WORD_BITS, Cut, Group, Mask, Words, groups_after, outer_band

LEFT_AT_ONCE = 1 << 15  # their keys stay in a core's cache
CANDIDATES_AT_ONCE = 1 << 18
PAIRS_AT_ONCE = 1 << 16
SPARE_BUCKET_BITS = 1  # one to two buckets, eight to sixteen keys, a right hash
MAX_BUCKET_BITS = 25
SPAN_BITS = 32
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Side:
    """Holds the hashes of one side of a join."""

    words: Words
    owner: NDArray[np.uint32]  # (N,): the image that a hash belongs to

    def __len__(self) -> int:
        return len(self.owner)


@dataclass(frozen=True)
class Near:
    """Holds pairs of hashes within the distance, by their rows in either side."""

    left: Rows
    right: Rows
    distance: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.left)

    def take(self, chosen: NDArray[np.bool_]) -> Near:
        """Return the chosen pairs."""
        rows = np.flatnonzero(chosen)
        return Near(self.left.take(rows), self.right.take(rows), self.distance.take(rows))


def join_band(left: Side, right: Side, *, number: int, distance: int, width: int, cut: Cut) -> Iterator[Near]:
    """Yield the pairs that belong to an outer band, each once; none of two hashes of one image.

    Besides the sides it holds some 60 bytes a right hash, and `CANDIDATES_AT_ONCE` candidates or as many as one left hash has.
    """
    if not len(left) or not len(right):
        return
    before = [outer_band(earlier, width=width) for earlier in range(number)]
    ours = outer_band(number, width=width)
    groups = groups_after(number, distance=distance, width=width, cut=cut)
    index = _KeyIndex(right.words)
    for position, group in enumerate(groups):
        for bands, mask in group.tables():
            index.sort_by(mask | ours)
            for near in _batched(_near_pairs(index, left, right, distance=distance)):
                found = _first_outside(near, left, right, before=before, band=ours)
                found = _first_inside(found, left, right, before=groups[:position], group=group, bands=bands)
                if len(found):
                    yield found


class _KeyIndex:
    """Holds hashes sorted by a key of their bits in a mask.

    A key's high bits name a bucket, its low three a bit of the bucket's byte, which says whether some hash has them. This byte
    alone is looked at for most hashes that have no partner: the bytes of many hashes fit into a core's cache.
    """

    def __init__(self, words: Words) -> None:
        num_hashes = words.shape[1]
        bucket_bits = min(MAX_BUCKET_BITS, num_hashes.bit_length() + SPARE_BUCKET_BITS)
        self.order: Rows = np.arange(num_hashes)
        self._words, self._mask = words, np.zeros(NUM_WORDS, np.uint64)
        self._shift, self._row_bits = np.uint64(WORD_BITS - bucket_bits - 3), np.uint64(num_hashes.bit_length())
        self._bits, self._used = np.zeros(1 << bucket_bits, np.uint8), np.zeros(0, np.int64)
        self._spans = np.empty(1 << bucket_bits, np.uint64)  # of the buckets in use: first place and number of places

    def sort_by(self, mask: Mask) -> None:
        """Sort by the bits of a mask."""
        self._bits[self._used] = 0
        self._mask = mask
        keys = self._keys(self._words)
        keys <<= self._row_bits
        keys |= np.arange(len(keys), dtype=np.uint64)
        keys.sort()  # a number that holds the row too sorts several times faster than rows do by their keys
        self.order = (keys & ((np.uint64(1) << self._row_bits) - np.uint64(1))).view(np.int64)
        keys >>= self._row_bits
        bits = _bit_of(keys)
        keys >>= np.uint64(3)
        buckets = keys.view(np.int64)
        starts = np.flatnonzero(np.concatenate([[True], buckets[1:] != buckets[:-1]]))
        self._used = buckets.take(starts)
        self._bits[self._used] = np.bitwise_or.reduceat(bits, starts)
        counts = np.diff(starts, append=len(buckets))
        self._spans[self._used] = (starts << SPAN_BITS | counts).view(np.uint64)

    def telling_word(self) -> int:
        """Return the number of the word with the most bits outside the mask: it tells candidates apart."""
        return int(np.argmin(np.bitwise_count(self._mask[: NUM_BITS // WORD_BITS])))

    def look_up(self, words: Words) -> tuple[Rows, Rows, Rows]:
        """Return the hashes whose keys are in use, and for each the first place in `order` and the number of places."""
        keys = self._keys(words)
        bits = _bit_of(keys)
        keys >>= np.uint64(3)
        bits &= self._bits.take(keys.view(np.int64))
        hits = np.flatnonzero(bits)
        spans = self._spans.take(keys.view(np.int64).take(hits)).view(np.int64)
        return hits, spans >> SPAN_BITS, spans & ((1 << SPAN_BITS) - 1)

    def _keys(self, words: Words) -> NDArray[np.uint64]:
        keys: NDArray[np.uint64] | None = None
        for number in np.flatnonzero(self._mask).tolist():
            part = words[number] & self._mask[number]
            part *= FACTORS[number]
            keys = part if keys is None else np.add(keys, part, out=keys)
        assert keys is not None  # an outer band has a bit at least
        keys >>= self._shift
        return keys


def _bit_of(keys: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Return the bit of a byte that the low three bits of a key name."""
    return np.left_shift(np.uint8(1), keys.astype(np.uint8) & np.uint8(7))


def _near_pairs(index: _KeyIndex, left: Side, right: Side, *, distance: int) -> Iterator[Near]:
    """Yield the pairs within the distance that have the same key."""
    word = index.telling_word()
    others = [number for number in range(NUM_WORDS) if number != word]
    sorted_words = right.words[word].take(index.order)
    for start in range(0, len(left), LEFT_AT_ONCE):
        hits, first, count = index.look_up(left.words[:, start : start + LEFT_AT_ONCE])
        hits += start
        for low, high in _cut(count):
            counts = count[low:high]
            ends = np.cumsum(counts)
            places = np.repeat(first[low:high] - (ends - counts), counts)
            places += np.arange(len(places))
            rows = np.repeat(hits[low:high], counts)
            differing = np.bitwise_count(left.words[word].take(rows) ^ sorted_words.take(places))
            alike = np.flatnonzero(differing <= distance)
            rows, entries, differing = rows.take(alike), index.order.take(places.take(alike)), differing.take(alike)
            other = np.flatnonzero(left.owner.take(rows) != right.owner.take(entries))
            rows, entries, differing = rows.take(other), entries.take(other), differing.take(other)
            for number in others:
                differing += np.bitwise_count(left.words[number].take(rows) ^ right.words[number].take(entries))
            near = Near(rows, entries, differing)
            if len(near):
                yield near.take(differing <= distance)


def _batched(found: Iterator[Near]) -> Iterator[Near]:
    """Yield pairs in fewer pieces: what follows costs calls more than pairs."""
    waiting: list[Near] = []
    for near in found:
        waiting.append(near)
        if sum(map(len, waiting)) >= PAIRS_AT_ONCE:
            yield _joined(waiting)
            waiting = []
    yield _joined(waiting)


def _joined(pieces: Sequence[Near]) -> Near:
    empty = Near(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint8))
    columns = ("left", "right", "distance")
    return Near(*(np.concatenate([getattr(piece, name) for piece in (empty, *pieces)]) for name in columns))


def _first_outside(near: Near, left: Side, right: Side, *, before: Sequence[Mask], band: Mask) -> Near:
    """Return the pairs that agree on an outer band and on none before it. Equal keys do not say that they agree."""
    for earlier in before:
        near = near.take(_differ(near, left, right, earlier))
    return near.take(~_differ(near, left, right, band))


def _first_inside(near: Near, left: Side, right: Side, *, before: Sequence[Group], group: Group, bands: int) -> Near:
    """Return the pairs whose first group with enough bands that agree is this one, and whose first such bands are `bands`."""
    for earlier in before:
        num_agreeing = np.zeros(len(near), np.int64)
        for band in earlier.bands:
            num_agreeing += ~_differ(near, left, right, band)
        near = near.take(num_agreeing < earlier.num_agreeing)
    num_agreeing, chosen = np.zeros((2, len(near)), np.int64)
    for number, band in enumerate(group.bands):
        agrees = ~_differ(near, left, right, band) & (num_agreeing < group.num_agreeing)
        num_agreeing += agrees
        chosen |= agrees.astype(np.int64) << number
    return near.take(chosen == bands)


def _differ(near: Near, left: Side, right: Side, mask: Mask) -> NDArray[np.bool_]:
    """Return which pairs differ in some bit of a mask."""
    differ = np.zeros(len(near), np.bool_)
    for number in np.flatnonzero(mask).tolist():
        differ |= ((left.words[number].take(near.left) ^ right.words[number].take(near.right)) & mask[number]) != 0
    return differ


def _cut(count: Rows) -> list[tuple[int, int]]:
    """Return ranges of left hashes with a bounded number of candidates each, if more than one hash shares them."""
    if int(count.sum()) <= CANDIDATES_AT_ONCE:
        return [(0, len(count))]
    group = np.cumsum(count) // CANDIDATES_AT_ONCE
    edges = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(count)]
    return list(itertools.pairwise(edges))
