"""Join the listings of a source's parts into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from data_tools.make.sources.listing import COLUMNS, ENDS, MAX_NAMED, TIMES_MODULUS, Listing
from pipeline.errors import DataError


def concatenate(parts: Sequence[Listing]) -> Listing:
    """Join several listings of the same layout. Where their class names differ, labels are renumbered by sorted name.

    Raises:
        DataError: some parts have class names, others only numbers.
    """
    parts = _agree_on_classes(parts)
    first_passed_over = tuple(name for part in parts for name in part.first_passed_over)[:MAX_NAMED]
    extensions = tuple(dict.fromkeys(extension for part in parts for extension in part.extensions))
    index_of = {extension: index for index, extension in enumerate(extensions)}
    is_one = parts[0].layout == "files"
    files = parts[0].files if is_one else tuple(file for part in parts for file in part.files)
    origins = parts[0].origins if is_one else tuple(origin for part in parts for origin in part.origins)
    first_files = np.cumsum([0, *(len(part.files) if part.layout == "ranges" else 0 for part in parts)])
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
    for name, values in zip(ENDS, ("name_bytes", "labels", "member_start"), strict=True):
        firsts = np.cumsum([0, *(len(getattr(part, values)) for part in parts)])
        joined[name] = np.concatenate([getattr(part, name) + first for part, first in zip(parts, firsts, strict=False)])
    joined["member_extension"] = np.concatenate(
        [np.array([index_of[extension] for extension in part.extensions], np.int32)[part.member_extension] for part in parts]
    )
    joined["member_file"] = np.concatenate(
        [(part.member_file + first).astype(np.int32) for part, first in zip(parts, first_files, strict=False)]
    )
    return Listing(
        layout=parts[0].layout,
        files=files,
        origins=origins,
        extensions=extensions,
        classes=parts[0].classes,
        class_source="texts" if any(part.class_source == "texts" for part in parts) else "names",
        passed_over=sum(part.passed_over for part in parts),
        first_passed_over=first_passed_over,
        empty_classes=tuple(name for part in parts for name in part.empty_classes),
        times=sum(part.times for part in parts) % TIMES_MODULUS,
        **joined,
    )


def _agree_on_classes(parts: Sequence[Listing]) -> Sequence[Listing]:
    lists = {part.classes for part in parts if len(part.labels) or part.classes is not None}
    if len(lists) == 1:  # a part without labels does not count
        (classes,) = lists
        return [replace(part, classes=classes) for part in parts]
    if None in lists:
        raise DataError("some files of the source name their classes, others only number them; make them alike")
    names = sorted({name for classes in lists for name in classes or ()}) or None
    if names is None:
        return parts
    index_of = {name: index for index, name in enumerate(names)}
    return [part.relabel(np.array([index_of[name] for name in part.classes or ()], np.int32), names) for part in parts]
