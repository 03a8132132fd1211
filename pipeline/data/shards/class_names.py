"""Read classes.txt: the names of classes, one a line in the order of their ids."""

from __future__ import annotations

import re

from pipeline.data.shards.folder import ShardFolder
from pipeline.data.stand_ins import refuse_stand_in
from pipeline.errors import DataError

CLASSES_NAME = "classes.txt"
LINE_END = re.compile(r"\r\n|\n|\r")  # `str.splitlines` also cuts at U+0085 and U+2028, which names may hold

BYTE_ORDER_MARK = "\ufeff"  # two of them where a program has put its own before another's


def split_lines(text: str) -> list[str]:
    """Return lines without their ends; empty ones at the end are left out."""
    lines = LINE_END.split(text)
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def class_names_of(*folders: str) -> list[str] | None:
    """Return class names by id, from the first of the folders that has a classes.txt; None if none has.

    Raises:
        DataError: a file that is not text in UTF-8, or a folder that cannot be reached.
    """
    for folder in map(ShardFolder, folders):
        if folder.exists(CLASSES_NAME):
            return parse_class_names(folder.read(CLASSES_NAME), source=f"{folder.path}/{CLASSES_NAME}")
    return None


def parse_class_names(data: bytes, *, source: str) -> list[str]:
    """Return the names that a classes.txt holds, with a byte-order mark or without, whatever its lines end with.

    Raises:
        DataError: not UTF-8, or a placeholder of a file that has not been downloaded.
    """
    if data:
        refuse_stand_in(data, name=source)
    try:
        return split_lines(data.decode().lstrip(BYTE_ORDER_MARK))
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is not text in UTF-8 ({error.reason} at byte {error.start}); convert it") from error
