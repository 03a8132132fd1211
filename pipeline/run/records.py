"""Read and write a run folder's small JSON files: lines that are appended, states that are replaced. Light imports only."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.files import read_replaced, write_whole
from pipeline.json_text import parse_json, to_finite

Row = dict[str, Any]
LARGEST_COUNT = 2**53  # every program reads integers up to here exactly from JSON


def append_json_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append one line in one write. An earlier line that a crash truncated is closed off first."""
    append_json_lines(path, [values])


def append_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append lines in one write, durably."""
    lines = b"".join(json.dumps(to_finite(values), allow_nan=False).encode() + b"\n" for values in rows)
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                lines = b"\n" + lines
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def read_json_lines(path: Path, *, last_bytes: int | None = None) -> list[Row]:
    """Return all whole lines of a JSON-lines file, or those of its last bytes. A truncated line is passed over.

    Raises:
        OSError: the file exists and cannot be read.
    """
    try:
        with path.open("rb") as file:
            if last_bytes is not None:
                file.seek(max(0, file.seek(0, os.SEEK_END) - last_bytes))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return _parse_lines(text)


def _parse_lines(text: str) -> list[Row]:
    rows = []
    for line in text.split("\n"):
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


class GrowingLines:
    """Reads a JSON-lines file again and again, each time what was appended to it since.

    Attributes:
        generation: rises when the file is another one, or has become shorter, and is read from its start.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.generation = 0
        self._rows: list[Row] = []
        self._file: tuple[int, int] | None = None  # device and inode
        self._end = 0  # of the whole lines that were read

    def read(self) -> list[Row]:
        """Return all whole lines. A truncated line is passed over, until it is whole.

        Raises:
            OSError: the file exists and cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                stat = os.fstat(file.fileno())
                if (stat.st_dev, stat.st_ino) != self._file or stat.st_size < self._end:
                    self._begin((stat.st_dev, stat.st_ino))
                file.seek(self._end)
                new = file.read()
        except FileNotFoundError:
            self._begin(None)
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self._end += len(whole)
        self._rows += _parse_lines(whole.decode(errors="replace"))
        # The last line may be whole and lack its end.
        return self._rows + _parse_lines(new[len(whole) :].decode(errors="replace"))

    def _begin(self, file: tuple[int, int] | None) -> None:
        self.generation += 1
        self._rows, self._file, self._end = [], file, 0


def has_step(row: Mapping[str, Any]) -> bool:
    """Return whether a line has its step."""
    return is_count(row.get("step"))


def is_count(value: Any) -> bool:
    """Return whether a value is a whole number that can count steps or images."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST_COUNT


def number(values: Mapping[str, Any], key: str) -> float | None:
    """Return a finite number of a line or state; None where it is missing, null or anything else."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < 1e300 else None  # a whole number may be too large for a float


def newest_history(rows: Iterable[Row]) -> list[Row]:
    """Return the lines that lead to the last one, in order, without those of steps that a resume repeated."""
    kept: list[Row] = []
    for row in reversed(list(rows)):
        if has_step(row) and (not kept or row["step"] < kept[-1]["step"]):
            kept.append(row)
    return kept[::-1]


def read_metrics(path: Path) -> list[Row]:
    """Return the lines of the metrics file that lead to its last one, one a step, in order.

    Raises:
        OSError: the file exists and cannot be read.
    """
    return newest_history(read_json_lines(path))


def replace_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a file that readers see whole: the old one or the new one. It is not flushed: it is useless after a crash."""
    write_whole(path, json.dumps(values, indent=1), durability="unflushed")


def read_json(path: Path) -> Row | None:
    """Return a JSON file's values; None where there is no file, or an unreadable one."""
    try:
        values = parse_json(read_replaced(path))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
