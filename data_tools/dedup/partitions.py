"""Divide the hashes of an outer band among tasks, so that each fits into a worker's memory."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEFT_BYTES = 110  # of memory, a left hash: its record, words, place and owner
RIGHT_BYTES = 230  # of memory, a right hash: the same, and the index by a table's key
FIXED_BYTES = 320 << 20  # of memory: the interpreter, its libraries, candidates and pairs at work
MIN_PARTITION_BYTES = 256 << 20  # smaller ones cost more in calls than they save
MIN_PARTITIONS = 64  # of an outer band, where they are no smaller than that: for that many workers to share


@dataclass(frozen=True)
class Partition:
    """Names a range of values of an outer band, and of each side's hashes with these values one block of several.

    A range of more than one value has one block a side.
    """

    low: int
    high: int  # excluded
    left_block: int = 0
    num_left_blocks: int = 1
    right_block: int = 0
    num_right_blocks: int = 1


def partition_bytes(*, memory_bytes: int, num_left: int, num_right: int) -> int:
    """Return how much memory a partition's hashes may take: a worker's, or less, so that there are enough partitions."""
    total = LEFT_BYTES * num_left + RIGHT_BYTES * num_right
    wanted = max(MIN_PARTITION_BYTES, total // MIN_PARTITIONS)
    return max(1, min(memory_bytes - FIXED_BYTES, wanted))


def cut_values(left: NDArray[np.int64], right: NDArray[np.int64], *, max_bytes: int) -> list[Partition]:
    """Return partitions that cover all values that both sides have, none of more than `max_bytes`.

    A single value with more hashes than that is cut into blocks: each of one side meets each of the other.

    Args:
        left: number of hashes of the left side by value.
        right: the same of the right side.
    """
    partitions: list[Partition] = []
    low: int | None = None
    held = 0
    sizes = (LEFT_BYTES * left + RIGHT_BYTES * right).tolist()
    for value, size in enumerate(sizes):
        if low is not None and held + size > max_bytes:
            partitions.append(Partition(low, value))
            low = None
        if size > max_bytes:
            if left[value] and right[value]:
                partitions += _cut_blocks(value, int(left[value]), int(right[value]), max_bytes=max_bytes)
            continue
        if low is None:
            low, held = value, 0
        held += size
    if low is not None:
        partitions.append(Partition(low, len(sizes)))
    return [part for part in partitions if left[part.low : part.high].any() and right[part.low : part.high].any()]


def _cut_blocks(value: int, num_left: int, num_right: int, *, max_bytes: int) -> list[Partition]:
    """Return all pairs of blocks of one value's hashes. The right side has up to half of the memory."""
    right_rows = max(1, max_bytes // 2 // RIGHT_BYTES)
    right_blocks = -(-num_right // right_rows)
    left_rows = max(1, (max_bytes - RIGHT_BYTES * -(-num_right // right_blocks)) // LEFT_BYTES)
    left_blocks = -(-num_left // left_rows)
    return [
        Partition(value, value + 1, left, left_blocks, right, right_blocks)
        for left in range(left_blocks)
        for right in range(right_blocks)
    ]


def cut_leaves(left: NDArray[np.int64], right: NDArray[np.int64], *, max_right: int) -> list[tuple[int, int]]:
    """Return ranges of values, each of one value or of few enough right hashes; without those that lack a side."""
    edges = [0]
    held = 0
    for value, count in enumerate(right.tolist()):
        if held + count > max_right and value > edges[-1]:
            edges.append(value)
            held = 0
        held += count
    edges.append(len(right))
    return [(low, high) for low, high in itertools.pairwise(edges) if left[low:high].any() and right[low:high].any()]
