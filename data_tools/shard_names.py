"""Read what the names in a folder of shards say: downloads that did not end, and numbers that are missing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pipeline.errors import DataError

CONTROL = ".aria2"  # exists next to a file that has its full size from the start, with zeros where nothing has come yet
ENDINGS = frozenset({"part", "partial", "crdownload", "download", "incomplete", "filepart", "tmp", "temp", "swp", "lock"})
COMPANIONS = re.compile(
    r"(?:md5|sha\d+|crc\d*|xxh\d*)(?:sums?)?|idx|index|json|csv|txt|done|ok|log|gz|tgz|zst|xz|bz2|lz4", re.IGNORECASE
)
RANDOM = re.compile(r"(?=.*[A-Z0-9])[A-Za-z0-9]{6,8}")  # suffix that rsync, `aws s3 cp` and others add while they write
OF_MANY = re.compile(r"(.*?)(\d+)-of-(\d+)(\D*)")
NUMBERED = re.compile(r"(.*?)(\d+)(\D*)")
MAX_SHOWN = 5


def find_unfinished(names: Iterable[str]) -> list[str]:
    """Return files that are parts of tars by their names."""
    return sorted(name for name in names if _is_unfinished(name))


def _is_unfinished(name: str) -> bool:
    _, tar, rest = name.partition(".tar")
    if not tar or not rest:
        return False
    ending = rest.lstrip(".-_~ ").partition(" ")[0]
    if COMPANIONS.fullmatch(ending):
        return False
    return ending.lower() in ENDINGS or rest == CONTROL or RANDOM.fullmatch(ending) is not None


def check_finished(names: Sequence[str], *, source: object) -> None:
    """Refuse tars that a download has not filled yet.

    Raises:
        DataError: naming the first.
    """
    for name in sorted(names):
        if name.endswith(f".tar{CONTROL}") and name.removesuffix(CONTROL) in names:
            raise DataError(
                f"{source}: {name} says that the download of {name.removesuffix(CONTROL)} has not ended: the tar has its full "
                "size, and zeros where images are missing; go on with the download (`aria2c -c`), or fetch it again"
            )


def find_gaps(shards: Iterable[str]) -> list[str]:
    """Return the names of shards that are missing in the numbering; none if the shards are not numbered."""
    groups: dict[tuple[str, str, str, int], set[int]] = {}
    for name in shards:
        stem = name.removesuffix(".tar")
        if match := OF_MANY.fullmatch(stem):
            head, number, total, tail = match.groups()
            groups.setdefault((head, f"-of-{total}{tail}", total, len(number)), set()).add(int(number))
        elif match := NUMBERED.fullmatch(stem):
            head, number, tail = match.groups()
            width = len(number) if len(number) > 4 or (number.startswith("0") and len(number) > 1) else 0
            groups.setdefault((head, tail, "", width), set()).add(int(number))
    missing: list[str] = []
    for (head, tail, total, width), numbers in groups.items():
        first, last = min(numbers), max(numbers)
        if total:  # 00000-of-00008, or from 1 on
            first, last = (1, int(total)) if last == int(total) else (0, int(total) - 1)
        if last - first + 1 > 2 * len(numbers):  # these are no numbers of shards
            continue
        missing += [f"{head}{number:0{width}d}{tail}.tar" for number in range(first, last + 1) if number not in numbers]
    return sorted(missing)


def lines(found: Iterable[str]) -> str:
    """Return remarks as lines for a terminal; empty if there are none."""
    return "".join(f"{line}\n" for line in found)


def remark(names: Sequence[str], shards: Sequence[str]) -> list[str]:
    """Return the remarks on a folder.

    Args:
        names: names of all its files.
        shards: those of them that are taken.
    """
    found: list[str] = []
    if unfinished := find_unfinished(names):
        found.append(f"passed over: {_some(unfinished)}, by the name a tar that did not come whole; fetch it again")
    if gaps := find_gaps(shards):
        found.append(f"missing in the numbering: {_some(gaps)}; fetch them if they are part of the set")
    return found


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(names[:MAX_SHOWN]) + more
