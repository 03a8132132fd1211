"""Collect what a source holds, sample by sample, into a listing."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import xxhash

from data_tools.make.sources.listing import MAX_NAMED, TIMES_MODULUS, Layout, Listing, Member
from pipeline.errors import DataError


class ListingBuilder:
    """Collects samples one by one. Labels are numbers, or names, which are numbered in sorted order at the end."""

    def __init__(self) -> None:
        self._name_bytes = bytearray()
        self._name_ends, self._label_ends, self._member_ends = array("q"), array("q"), array("q")
        self._labels, self._extension, self._file = array("i"), array("i"), array("i")
        self._start, self._length = array("q"), array("q")
        self._rows = array("i")
        self._extensions: dict[str, int] = {}
        self._vocabulary: dict[str, int] = {}
        self._has_numbers = False
        self._passed_over = 0
        self._first_passed_over: list[str] = []
        self._times = 0

    def __len__(self) -> int:
        return len(self._name_ends)

    def add(self, name: str, *, labels: Iterable[int | str], members: Iterable[Member], row: int | None = None) -> None:
        """Add a sample behind the others. A label that is given twice counts once.

        Args:
            row: the line or row that names it; given for all samples or for none.
        """
        if row is not None:
            self._rows.append(row)
        self._name_bytes += name.encode("utf-8", "surrogateescape")
        self._name_ends.append(len(self._name_bytes))
        for label in dict.fromkeys(labels):
            is_name = isinstance(label, str)
            self._has_numbers |= not is_name
            self._labels.append(self._vocabulary.setdefault(label, len(self._vocabulary)) if is_name else label)
        self._label_ends.append(len(self._labels))
        for extension, file, start, length in members:
            self._extension.append(self._extensions.setdefault(extension, len(self._extensions)))
            self._file.append(file)
            self._start.append(start)
            self._length.append(length)
        self._member_ends.append(len(self._length))

    def note_labels(self, labels: Iterable[int | str]) -> None:
        """Note names that occur in samples of other splits: all splits of a source are numbered alike."""
        for label in labels:
            if isinstance(label, str):
                self._vocabulary.setdefault(label, len(self._vocabulary))

    def note_time(self, name: str, time_ns: int | str) -> None:
        """Note when a file was last changed, or a store's version of it: one that is replaced may have the size of before."""
        text = f"{name} {time_ns}".encode("utf-8", "surrogateescape")
        self._times = (self._times + xxhash.xxh3_64_intdigest(text)) % TIMES_MODULUS

    def pass_over(self, name: str) -> None:
        """Count a file that is not an image, or a sample without one."""
        self._passed_over += 1
        if len(self._first_passed_over) < MAX_NAMED:
            self._first_passed_over.append(name)

    def build(
        self,
        *,
        layout: Layout,
        files: Sequence[str],
        classes: Sequence[str] | None = None,
        origins: Sequence[str] | None = None,
    ) -> Listing:
        """Return a listing of all that was added.

        Args:
            origins: for each file, what its samples were read from, where that is another one.
            classes: names by label, where labels were given as numbers.

        Raises:
            DataError: numbers among names.
        """
        if self._vocabulary and self._has_numbers:
            raise DataError(f"{files[0]}: some of its labels are numbers, others are names; make them alike")
        listing = Listing(
            layout=layout,
            files=tuple(files),
            origins=tuple(files if origins is None else origins),
            extensions=tuple(self._extensions),
            passed_over=self._passed_over,
            first_passed_over=tuple(self._first_passed_over),
            empty_classes=(),
            times=self._times,
            classes=None if classes is None else tuple(classes),
            class_source="texts" if self._vocabulary else "names",
            name_ends=np.array(self._name_ends, np.int64),
            name_bytes=np.frombuffer(bytes(self._name_bytes), np.uint8),
            label_ends=np.array(self._label_ends, np.int64),
            labels=np.array(self._labels, np.int32),
            member_ends=np.array(self._member_ends, np.int64),
            member_extension=np.array(self._extension, np.int32),
            member_file=np.array(self._file, np.int32),
            member_start=np.array(self._start, np.int64),
            member_length=np.array(self._length, np.int64),
            rows=np.array(self._rows, np.int32),
        )
        if not self._vocabulary:
            return listing
        names = sorted(self._vocabulary)
        index_of = {name: index for index, name in enumerate(names)}
        return listing.relabel(np.array([index_of[name] for name in self._vocabulary]), names)
