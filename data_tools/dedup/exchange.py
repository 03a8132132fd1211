"""Exchange hashes and pairs between tasks through files, each written whole or not at all.

SCRATCH/
  band-03-000012.safetensors     records of one group of shards, of both sides, ordered by their values of outer band 3
  pairs-03-000040-0.safetensors  pairs that a partition of band 3 found, ordered by image
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from data_tools.dedup.bands import FACTORS, WORD_BITS, Mask, as_words
from data_tools.dedup.matching import Codes, Copies
from data_tools.dedup.perceptual_hash import HASH_BYTES, VIEW_BYTES
from pipeline.files import write_whole

SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")
RECORD = np.dtype([("view", np.uint8, VIEW_BYTES), ("image", "<u4"), ("kind", np.int8)])  # packed: 50 bytes
MAX_VALUE_BITS = 12
SPARE_VALUE_BITS = 3  # so that few values of a narrow band are taken for one
ROWS_AT_ONCE = 1 << 16
PAIR_COLUMNS = {"first": np.uint32, "second": np.uint32, "distance": np.uint8, "kind": np.uint8}

SideName = Literal["left", "right"]
Records = NDArray[np.void]  # (N,) of RECORD


def num_values(width: int) -> int:
    """Return the number of values that hashes are scattered by, for outer bands of this width."""
    return 1 << min(MAX_VALUE_BITS, width + SPARE_VALUE_BITS)


def band_values(views: NDArray[np.uint8], band: Mask, *, width: int) -> NDArray[np.uint16]:
    """Return a value of an outer band for each view, (N, 45): equal where its bits are, and seldom where they are not."""
    shift = np.uint64(WORD_BITS - (num_values(width).bit_length() - 1))
    values = np.empty(len(views), np.uint16)
    for start in range(0, len(views), ROWS_AT_ONCE):
        words = as_words(views[start : start + ROWS_AT_ONCE, :HASH_BYTES])
        keys = np.zeros(words.shape[1], np.uint64)
        for number in np.flatnonzero(band).tolist():
            keys += (words[number] & band[number]) * FACTORS[number]
        values[start : start + ROWS_AT_ONCE] = keys >> shift
    return values


def write_records(path: Path, sides: dict[SideName, Codes], *, band: Mask, width: int) -> None:
    """Write the hashes of some images, ordered by their values of an outer band.

    Raises:
        OSError: they cannot be written.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, codes in sides.items():
        values = band_values(codes.views, band, width=width)
        order = np.argsort(values, kind="stable")
        records = np.empty(len(codes.image), RECORD)
        records["view"], records["image"], records["kind"] = codes.views[order], codes.image[order], codes.kind[order]
        arrays[name] = records.view(np.uint8).reshape(-1, RECORD.itemsize)
        arrays[f"{name}_first"] = np.zeros(num_values(width) + 1, np.int64)
        np.cumsum(np.bincount(values, minlength=num_values(width)), out=arrays[f"{name}_first"][1:])
    write_whole(path, save(arrays))


def count_values(path: Path) -> dict[SideName, NDArray[np.int64]]:
    """Return the number of records by value, of either side."""
    with safe_open(path, framework="numpy") as file:
        return {name: np.diff(file.get_tensor(f"{name}_first")) for name in SIDES}


@dataclass(frozen=True)
class LoadedRecords:
    """Holds records of a range of values, and the value of each, counted from the first of them."""

    records: Records
    values: NDArray[np.uint16]


def read_records(paths: Sequence[Path], side: SideName, *, low: int, high: int, block: int, num_blocks: int) -> LoadedRecords:
    """Return one block of the records with values from `low` to below `high`, file after file.

    Args:
        block: which of the blocks, all of them as long as each other or longer by one.
    """
    firsts = [_read_rows(path, f"{side}_first", low, high + 1) for path in paths]
    ends = np.cumsum([0, *(int(first[-1] - first[0]) for first in firsts)])
    start, stop = int(ends[-1]) * block // num_blocks, int(ends[-1]) * (block + 1) // num_blocks
    records = np.empty(stop - start, RECORD)
    rows = records.view(np.uint8).reshape(-1, RECORD.itemsize)
    values = np.empty(stop - start, np.uint16)
    for path, first, before in zip(paths, firsts, ends[:-1].tolist(), strict=True):
        begin, end = max(start, before), min(stop, before + int(first[-1] - first[0]))
        if begin >= end:
            continue
        offset = int(first[0]) - before
        rows[begin - start : end - start] = _read_rows(path, side, begin + offset, end + offset)
        values[begin - start : end - start] = np.searchsorted(first, np.arange(begin + offset, end + offset), side="right") - 1
    return LoadedRecords(records, values)


def write_pairs(path: Path, pairs: Copies, *, edges: Sequence[int]) -> None:
    """Write pairs that are ordered by their first images.

    Args:
        edges: numbers of images at which ranges of them begin and end, for `read_pairs`.

    Raises:
        OSError: they cannot be written.
    """
    arrays: dict[str, NDArray[Any]] = {name: getattr(pairs, name).astype(dtype) for name, dtype in PAIR_COLUMNS.items()}
    arrays["rows"] = np.searchsorted(pairs.first, edges)
    write_whole(path, save(arrays))


def read_pairs(path: Path, position: int) -> Copies:
    """Return the pairs whose first image is in one of the ranges."""
    low, high = _read_rows(path, "rows", position, position + 2).tolist()
    return Copies(**{name: _read_rows(path, name, low, high).astype(np.int64) for name in PAIR_COLUMNS})


def count_pairs(path: Path) -> NDArray[np.int64]:
    """Return the number of pairs in each range of first images."""
    with safe_open(path, framework="numpy") as file:
        return np.diff(file.get_tensor("rows"))


def _read_rows(path: Path, name: str, low: int, high: int) -> NDArray[Any]:
    with safe_open(path, framework="numpy") as file:
        if low < high:
            return file.get_slice(name)[low:high]
        rows = file.get_slice(name)  # the library refuses to slice an array that has no rows
        return (rows[0:1] if rows.get_shape()[0] else file.get_tensor(name))[:0]
