"""Number classes: by the source's numbers, by a list of names, or by a map of the source's classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from data_tools.make.sources.labels import read_texts
from data_tools.make.sources.listing import MAX_LABEL, Listing
from data_tools.text_files import printable, read_text, same_name
from pipeline.data.shards.class_names import split_lines
from pipeline.errors import DataError

Unmapped = Literal["refuse", "drop"]
NO_TARGET = -1
MAX_DIGITS = 18  # digits of a target, leading zeros included


@dataclass(frozen=True)
class Numbering:
    """Says how classes are to be numbered.

    Attributes:
        names: class names by id; the source's own if not given.
        targets: target class, by name or id, of every source class; each its own if not given.
        unmapped: what to do with samples of a class that `targets` does not name.
    """

    names: tuple[str, ...] | None = None
    targets: Mapping[str, str] | None = None
    unmapped: Unmapped = "refuse"


def read_class_list(path: str, *, encoding: str | None = None) -> tuple[str, ...]:
    """Read class names, one a line, in the order of their ids. Empty lines at the end are left out.

    Raises:
        DataError: no such file, an empty line between names, or a name twice.
    """
    names = split_lines(read_text(path, encoding=encoding))
    if not names:
        raise DataError(f"--classes {path} is empty")
    lines: dict[str, int] = {}
    for line, name in enumerate(names, start=1):
        if not name.strip():
            raise DataError(f"--classes {path} line {line} is empty, so what class has the id {line - 1} is not said")
        if lines.setdefault(same_name(name), line) != line:
            raise DataError(
                f"--classes {path} line {line}: {name!r} is in line {lines[same_name(name)]} too; each class needs a name of "
                "its own (and a folder of its own)"
            )
    return tuple(names)


def read_class_map(path: str, *, encoding: str | None = None) -> dict[str, str]:
    """Read a map of source class to target class from two tab-separated columns without a header.

    Raises:
        DataError: no such file, another number of columns, or a class that is named twice.
    """
    targets: dict[str, str] = {}
    for line, row in enumerate(split_lines(read_text(path, encoding=encoding)), start=1):
        cells = [cell.strip(" ") for cell in row.split("\t")]
        if not any(cells):
            continue
        if len(cells) != 2 or not all(cells):
            raise DataError(f"--class-map {path} line {line}: not a source class and a target class separated by a tab")
        if targets.setdefault(cells[0], cells[1]) != cells[1]:
            raise DataError(f"--class-map {path} line {line}: {cells[0]!r} goes to {targets[cells[0]]!r} further up")
    if not targets:
        raise DataError(f"--class-map {path} is empty")
    return targets


def number_classes(listing: Listing, numbering: Numbering) -> tuple[Listing, dict[str, int]]:
    """Return the listing with its classes numbered as requested, and how many samples were dropped, by their class.

    Raises:
        DataError: classes that are not among the given ones or not in the map, or labels beyond the last class.
    """
    listing = read_texts(listing, known={*(numbering.names or ()), *(numbering.targets or {})})
    _check_range(listing, listing.classes, "the source's")
    if numbering.targets is not None:
        return _map_classes(listing, numbering.targets, numbering)
    if numbering.names is None:
        return listing, {}
    if listing.classes is None:
        _check_range(listing, numbering.names, "the given")
        return replace(listing, classes=numbering.names), {}
    index_of = {same_name(name): index for index, name in enumerate(numbering.names)}
    used = np.unique(listing.labels).tolist()
    if strangers := [name for name in map(listing.classes.__getitem__, used) if same_name(name) not in index_of]:
        raise DataError(f"{_some(strangers)} of the source are not among the {len(index_of)} classes given with --classes")
    values = [index_of.get(same_name(name), NO_TARGET) for name in listing.classes]
    return listing.relabel(np.array(values), numbering.names), {}


def _map_classes(listing: Listing, targets: Mapping[str, str], numbering: Numbering) -> tuple[Listing, dict[str, int]]:
    names, index_of_target = _number_targets(targets, numbering.names)
    num_classes = len(listing.classes) if listing.classes is not None else int(listing.labels.max(initial=-1)) + 1
    of_source = listing.classes or [str(label) for label in range(num_classes)]
    values = np.array([index_of_target[targets[name]] if name in targets else NO_TARGET for name in of_source], np.int64)
    counts = np.bincount(listing.labels, minlength=num_classes)
    unmapped = {of_source[label]: int(counts[label]) for label in np.flatnonzero((values == NO_TARGET) & (counts > 0))}
    if unmapped and numbering.unmapped == "refuse":
        raise DataError(
            f"{_some(list(unmapped))} of the source are not in the class map; add them, or leave their samples out with "
            f"--unmapped drop"
        )
    return _drop_labels(listing.relabel(values, names)), unmapped


def _number_targets(targets: Mapping[str, str], given: Sequence[str] | None) -> tuple[Sequence[str] | None, dict[str, int]]:
    """Return class names by id, if known, and each target's id. Numbers are ids; names are numbered as given or sorted."""
    wanted = sorted(set(targets.values()))
    if all(target.isdecimal() for target in wanted):
        if too_long := [target for target in wanted if len(target) > MAX_DIGITS]:
            raise DataError(f"the class map has the target {too_long[0][:MAX_DIGITS]}..., which is not a class number")
        last = max(int(target) for target in wanted)
        if last > (MAX_LABEL if given is None else len(given) - 1):
            raise DataError(f"the class map has the target {last}, but {len(given or ())} classes were given with --classes")
        return given, {target: int(target) for target in wanted}
    names = wanted if given is None else given
    index_of = {name: index for index, name in enumerate(names)}
    if strangers := [target for target in wanted if target not in index_of]:
        raise DataError(f"targets of the class map are not among those given with --classes: {_some(strangers)}")
    return names, index_of


def _drop_labels(listing: Listing) -> Listing:
    """Drop the labels that have no target, the samples that have none left, and labels that a sample has twice."""
    counts = np.diff(listing.label_ends, prepend=0)
    sample = np.repeat(np.arange(len(listing)), counts)
    if len(sample) == len(listing) and (counts == 1).all():  # the common case needs no sorting
        return listing.take(np.flatnonzero(listing.labels != NO_TARGET))
    kept = listing.labels != NO_TARGET
    width = int(listing.labels.max(initial=0)) + 1
    pairs = np.unique(sample[kept] * width + listing.labels[kept])
    ends = np.cumsum(np.bincount(pairs // width, minlength=len(listing)))
    cleaned = replace(listing, labels=(pairs % width).astype(np.int32), label_ends=ends)
    return cleaned.take(np.flatnonzero(np.diff(ends, prepend=0) > 0))


def _check_range(listing: Listing, classes: Sequence[str] | None, whose: str) -> None:
    largest = int(listing.labels.max(initial=-1))
    if classes is not None and largest >= len(classes):
        raise DataError(f"label {largest} occurs, but {whose} classes are {len(classes)}, numbered from 0")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"classes {', '.join(map(printable, names[:5]))}{more}"
