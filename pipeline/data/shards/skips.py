"""Read and write skip lists: samples that the index leaves out, by shard and key, with the reason.

A skip list is a tab-separated file with the header line `shard key reason`, written by `verify` and `dedup`, or by hand.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import DataError
from pipeline.files import write_whole

COLUMNS = ("shard", "key", "reason")


class Skip(NamedTuple):
    """Names one sample to leave out."""

    shard: str  # name of the tar in its folder
    key: str
    reason: str


def write_skips(path: str | Path, skips: Iterable[Skip]) -> None:
    """Write a skip list, whole or not at all, sorted so that the same findings give the same file."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(sorted(skips))
    write_whole(path, text.getvalue().encode("utf-8", "surrogateescape"))  # tars hold names that are not UTF-8


def read_skips(path: str | Path) -> list[Skip]:
    """Read a skip list.

    Raises:
        DataError: no such file, or a line that is not one of a skip list.
    """
    try:
        # Spreadsheets and editors on Windows add a byte-order mark and end lines with CR LF.
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = [row for row in csv.reader(file, delimiter="\t") if row]
    except (OSError, csv.Error) as error:
        raise DataError(f"skip list {path}: {error}") from error
    if not rows or tuple(rows[0]) != COLUMNS:
        raise DataError(f"skip list {path}: its first line must be {chr(9).join(COLUMNS)!r} (tab-separated)")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(COLUMNS):
            raise DataError(f"skip list {path} line {number}: {len(row)} columns, not shard, key and reason separated by tabs")
    return [Skip(*row) for row in rows[1:]]
