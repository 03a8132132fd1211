"""Detect what lies under a file's name if the file itself was not downloaded: a page, an error, a pointer of git."""

from __future__ import annotations

import re

from pipeline.errors import DataError

STAND_INS = {
    "HTML": re.compile(rb"\s*<(!doctype html|html|head|body)", re.IGNORECASE),
    "XML, as stores answer errors with": re.compile(rb"\s*<\?xml|\s*<error", re.IGNORECASE),
    "a git-lfs pointer; `git lfs pull` brings the file": re.compile(rb"version https://git-lfs"),
}
POINTER_BYTES = range(100, 300)  # sizes of git-lfs's pointers


def describe_stand_in(start: bytes) -> str | None:
    """Return what a file is, by its first bytes, instead of what its name says; None for others."""
    return next((kind for kind, pattern in STAND_INS.items() if pattern.match(start)), None)


def refuse_stand_in(start: bytes, *, name: object) -> None:
    """Refuse a file that was not downloaded.

    Raises:
        DataError: the file is empty, or a placeholder.
    """
    if not start:
        raise DataError(f"{name} has 0 bytes: a download or a copy that failed; fetch it again, or remove it")
    if (kind := describe_stand_in(start)) is not None:
        raise DataError(f"{name} is {kind}")
