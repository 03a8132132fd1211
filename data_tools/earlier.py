"""Refuse to replace what an earlier command wrote by something that covers less, or that is about other shards."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from pipeline.data.shards.index_location import identify
from pipeline.errors import DataError
from pipeline.json_text import parse_json


def check_report(path: Path, *, folder: str, advice: str) -> None:
    """Refuse to replace a report on another folder.

    Args:
        folder: what the new report is about.
        advice: the option that names another path.

    Raises:
        DataError: the report at `path` is on another folder, or another program's.
    """
    report = read_report(path)
    if report is None or identify(str(path.parent)) == identify(folder):  # next to the shards, which may have been moved
        return
    other = report.get("folder")
    if not isinstance(other, str) or identify(other) != identify(folder):
        raise DataError(f"{path} exists already and is about {other if isinstance(other, str) else 'something else'}; {advice}")


def check_search(path: Path, *, corpus: str, against: Collection[str], inside: Literal["searched", "left alone"]) -> None:
    """Refuse to replace what a wider search for copies found.

    Raises:
        DataError: the report at `path` is on another corpus, or on test sets that this search leaves out.
    """
    report = read_report(path)
    if report is None:
        return
    try:
        other = str(report["corpus"]["path"])
        sets = [str(found["path"]) for found in report["test_sets"]]
        was_inside = report["left_out"]["copies_inside"] is not None
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} exists already and is no report of `dedup`; name a folder with --out") from error
    is_beside = identify(str(path.parent)) == identify(str(Path(corpus).parent if corpus.endswith(".tar") else corpus))
    if not is_beside and identify(other) != identify(corpus):
        raise DataError(f"{path} exists already and is about {other}; name another folder with --out")
    known = {identify(name) for name in against}
    missing = [f"--against {name}" for name in sets if identify(name) not in known]
    missing += ["--within"] if was_inside and inside == "left alone" else []
    if missing:
        raise DataError(
            f"{path} and its skip list hold what an earlier search found with {' '.join(missing)}, which this one would lose; "
            "add that to the command, or name another folder with --out"
        )


def check_skip_list(path: Path, *, is_ours: bool, given: Collection[str], advice: str) -> None:
    """Refuse to replace a skip list that a person made.

    Args:
        is_ours: whether an earlier call of this command left other traces.
        given: skip lists whose samples go into the new one.

    Raises:
        DataError: its samples would be lost.
    """
    if is_ours or not path.exists() or path.resolve() in {Path(name).resolve() for name in given}:
        return
    raise DataError(
        f"{path} exists already and no earlier call wrote it; --skip {path} takes its samples into the new list, or {advice}"
    )


def read_report(path: Path) -> dict[str, Any] | None:
    """Return the report that an earlier command wrote; None if there is none or it is damaged."""
    try:
        values = parse_json(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return values if isinstance(values, dict) else {}
