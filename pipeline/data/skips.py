"""Skip lists: samples that the index leaves out, by shard and key, with the reason.

A tab-separated file with the header line `shard key reason`; written by `verify` and `dedup`, or by hand.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import DataError

COLUMNS = ("shard", "key", "reason")


class Skip(NamedTuple):
    """One sample to leave out."""

    shard: str  # name of the tar in its folder
    key: str
    reason: str


def write_skips(path: str | Path, skips: Iterable[Skip]) -> None:
    """Write a skip list, whole or not at all, sorted so that the same findings give the same file."""
    part = Path(f"{path}.part")
    with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:  # tars hold names that are not UTF-8
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(sorted(skips))
    os.replace(part, path)


def read_skips(path: str | Path) -> list[Skip]:
    """Read a skip list.

    Raises:
        DataError: no such file, or a line that is not one of a skip list.
    """
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.reader(file, delimiter="\t"))
    except (OSError, csv.Error) as error:
        raise DataError(f"skip list {path}: {error}") from error
    if not rows or tuple(rows[0]) != COLUMNS:
        raise DataError(f"skip list {path}: its first line must be {chr(9).join(COLUMNS)!r} (tab-separated)")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(COLUMNS):
            raise DataError(f"skip list {path} line {number}: {len(row)} columns, not shard, key and reason separated by tabs")
    return [Skip(*row) for row in rows[1:]]
