"""The small JSON files of a run folder: lines that are appended, states that are replaced whole. Imports nothing heavy."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def append_json_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append one line in one write. A line that a crash cut short before is closed off first."""
    append_json_lines(path, [values])


def append_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append lines in one write, durably."""
    lines = b"".join(json.dumps(_finite(values), allow_nan=False).encode() + b"\n" for values in rows)
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                lines = b"\n" + lines
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no infinities: they become null."""
    return {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in values.items()}


def read_json_lines(path: Path, *, last_bytes: int | None = None) -> list[dict[str, Any]]:
    """All whole lines of a JSON-lines file, or those of its last bytes; a line that was cut short is passed over."""
    try:
        with path.open("rb") as file:
            if last_bytes is not None:
                file.seek(max(0, file.seek(0, os.SEEK_END) - last_bytes))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The metrics file with one row a step, the last written, in order."""
    by_step = {row["step"]: row for row in read_json_lines(path)}
    return [by_step[step] for step in sorted(by_step)]


def replace_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a file that readers see whole, the old one or the new one. Not flushed: it is worth nothing after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(json.dumps(values, indent=1))
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file's values; None where there is none, or none that can be read."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
