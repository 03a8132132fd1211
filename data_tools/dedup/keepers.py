"""Choose which of a set's copies stay, and name for each of the others the one that stays in its place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from data_tools.dedup.matching import Copies, Ints, join_copies

UNDECIDED, KEPT, OUT = 0, 1, 2
MIN_ROUND_SHARE = 16  # a round that decides less than one pair in this many is the last: a walk is cheaper then
PAIRS_AT_ONCE = 1 << 20


def choose_left_out(copies: Copies, *, rank: Ints) -> Copies:
    """Return which images to leave out, so that no two matching images stay, as pairs of one and the image kept in its place.

    Images are visited by rank. An image that is not left out yet is kept, and all that match it are left out. So every image
    that is left out matches a kept one: a chain of ever more different images is not followed beyond its first link.

    It takes some 100 bytes a pair. Time grows with the number of pairs alone, and for their sorting by its logarithm.

    Args:
        copies: all pairs of a set, in either order.
        rank: rank of each image, each once; the least is kept first.

    Returns:
        The images by rank of those that stay for them, then by their own.
    """
    images, places = np.unique(np.concatenate([copies.first, copies.second]), return_inverse=True)
    by_rank = np.argsort(rank[images])
    place_of = np.empty(len(images), np.int64)
    place_of[by_rank] = np.arange(len(images))  # images are numbered by rank, without gaps
    first, second = place_of[places].reshape(2, -1)
    low, high = np.minimum(first, second), np.maximum(first, second)
    # Where a pair was found from both sides, the one found from the image that stays is told.
    order = np.lexsort((first > second, high, low))
    order = order[low[order] != high[order]]
    low, high = low[order], high[order]
    is_kept = _keep_by_rank(low, high, num_images=len(images))
    rows = np.flatnonzero(is_kept[low])
    rows = rows[np.sort(np.unique(high[rows], return_index=True)[1])]  # the keeper of least rank comes first
    chosen = order[rows]
    names = images[by_rank]
    return Copies(names[high[rows]], names[low[rows]], copies.distance[chosen], copies.kind[chosen])


def _keep_by_rank(low: Ints, high: Ints, *, num_images: int) -> NDArray[np.bool_]:
    """Return which images stay: those that match none of less rank that stays.

    In a round all images stay that match no undecided one of less rank, and what matches these goes. Few rounds decide most
    sets. A chain whose ranks rise along it loses two images a round, so a walk along all pairs decides the rest.

    Args:
        low: the image of less rank of each pair; pairs are ordered by it.
        high: the other image.
    """
    state = np.zeros(num_images, np.uint8)
    while len(low):
        has_lower = np.zeros(num_images, np.bool_)
        has_lower[high] = True
        keeps = ~has_lower[low]
        state[low[keeps]] = KEPT
        state[high[keeps]] = OUT
        remaining = (state[low] == UNDECIDED) & (state[high] == UNDECIDED)
        num_before = len(low)
        low, high = low[remaining], high[remaining]
        if num_before - len(low) < num_before / MIN_ROUND_SHARE:
            _walk(low, high, state)
            break
    return state != OUT


def _walk(low: Ints, high: Ints, state: NDArray[np.uint8]) -> None:
    """Decide pairs one after the other: when an image is met as the lower one, all that could put it out have been met."""
    states = bytearray(state.tobytes())  # an item of an array takes three times as long to read
    for one, other in _each(low, high):
        if states[one] != OUT:
            states[other] = OUT
    state[:] = np.frombuffer(states, np.uint8)


def _each(low: Ints, high: Ints) -> Iterator[tuple[int, int]]:
    for start in range(0, len(low), PAIRS_AT_ONCE):
        yield from zip(low[start : start + PAIRS_AT_ONCE].tolist(), high[start : start + PAIRS_AT_ONCE].tolist(), strict=True)


def add_identical(left_out: Copies, leader: Ints, numbers: Ints) -> Copies:
    """Also leave out the images whose hash equals another one's, for the image that stays in that one's place.

    Args:
        left_out: of the images that lead.
        leader: the image, by number, whose hash an image's is equal to; its own number if it leads.
        numbers: the images that were compared.
    """
    twins = numbers[leader[numbers] != numbers]
    leads = leader[twins]
    ordered = left_out.take(np.argsort(left_out.first))
    row = np.minimum(np.searchsorted(ordered.first, leads), max(0, len(ordered) - 1))
    is_out = ordered.first[row] == leads if len(ordered) else np.zeros(len(twins), np.bool_)
    row = row[is_out]
    keeper, distance, kind = leads.copy(), np.zeros_like(leads), np.zeros_like(leads)
    keeper[is_out], distance[is_out], kind[is_out] = ordered.second[row], ordered.distance[row], ordered.kind[row]
    return join_copies([left_out, Copies(twins, keeper, distance, kind)])
