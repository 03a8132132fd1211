"""Read which examples of a set are wanted, in the words of TensorFlow Datasets: `train[:800]+validation[:200]`.

Percent are rounded to the nearest example, as there (https://www.tensorflow.org/datasets/splits); VTAB rounds them down.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from pipeline.errors import DataError

Rounding = Literal["nearest", "down"]  # of percent

_SLICE = re.compile(r"([\w-]+)(?:\[\s*(-?\d+)?(%?)\s*:\s*(-?\d+)?(%?)\s*\])?")


class Part(NamedTuple):
    """Names examples of one split: numbers from `first` up to `end`."""

    split: str
    first: int
    end: int


def parse_slices(text: str, counts: Mapping[str, int], *, rounding: Rounding = "nearest") -> list[Part]:
    """Return the parts that a text names.

    Args:
        counts: examples of each split.

    Raises:
        DataError: it is none, or names a split that the set has not, or no example.
    """
    return [_parse(word.strip(), counts, rounding) for word in text.split("+")]


def _parse(word: str, counts: Mapping[str, int], rounding: Rounding) -> Part:
    match = _SLICE.fullmatch(word)
    if match is None:
        raise DataError(
            f"--source-split {word!r} is no slice; write NAME, NAME[:800], NAME[20%:] or several with + between them"
        )
    split, first, first_percent, end, end_percent = match.groups()
    if split not in counts:
        raise DataError(f"--source-split names {split!r}; the set has {', '.join(counts)}")
    count = counts[split]
    part = Part(
        split,
        0 if first is None else _boundary(int(first), count, percent=rounding if first_percent else None),
        count if end is None else _boundary(int(end), count, percent=rounding if end_percent else None),
    )
    if part.first >= part.end:
        raise DataError(f"--source-split {word} names no example: {split} has {count}")
    return part


def _boundary(value: int, count: int, *, percent: Rounding | None) -> int:
    if percent is not None:
        value = round(value * count / 100) if percent == "nearest" else value * count // 100
    value = max(value + count, 0) if value < 0 else value
    if value > count:
        raise DataError(f"--source-split: an example number {value} is asked for, and the split has {count}")
    return value


def place_in_shards(part: Part, shard_lengths: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Return which examples of each shard a part has: first and end, by the shard's number."""
    places: dict[int, tuple[int, int]] = {}
    begin = 0
    for number, length in enumerate(shard_lengths):
        first, end = max(part.first - begin, 0), min(part.end - begin, length)
        if first < end:
            places[number] = (first, end)
        begin += length
    return places
