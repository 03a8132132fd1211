"""Store what a source holds, sample by sample (byte ranges, classes, name), in arrays instead of objects.

A sample takes some 70 to 100 bytes, so that fourteen million of them fit into the memory of one process.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pipeline.errors import DataError
from pipeline.json_text import parse_json

Layout = Literal["files", "ranges"]
ClassSource = Literal["names", "texts"]
Int64s = NDArray[np.int64]
TAR_BLOCK_BYTES = 512
MAX_LABEL = 2**31 - 1
TIMES_MODULUS = 2**64
MAX_NAMED = 100  # limit of the names of passed over files
COPIED_AT_ONCE = 1 << 16  # samples; bounds the memory that copying names takes


class Member(NamedTuple):
    """Describes one file of a sample, to be stored as KEY.extension."""

    extension: str
    file: int  # index into the listing's files
    start: int
    length: int


class Sample(NamedTuple):
    """Describes one sample as it is written: its name in the source, its classes unless a member holds them, its files."""

    name: str
    labels: list[int]
    members: list[Member]


@dataclass(frozen=True)
class Listing:
    """Holds samples in a fixed order. Values of sample i are those before `ends[i]` and from `ends[i - 1]` on.

    With the layout `files` a sample is one whole file, FILES[0]/NAME; with `ranges` its members are byte ranges of the
    files. `classes` are names (of folders, from metadata), or texts that a column or member holds, which may turn out to be
    numbers. `rows` are lines or rows of the list or table in `origins` that names a sample, where one does.
    """

    layout: Layout
    files: tuple[str, ...]
    origins: tuple[str, ...]  # for each file, what its samples were read from; itself in most sources
    extensions: tuple[str, ...]
    classes: tuple[str, ...] | None  # class names by label, where the source has them
    class_source: ClassSource
    passed_over: int  # files that are not images, or samples without one
    first_passed_over: tuple[str, ...]  # names of the first of them
    empty_classes: tuple[str, ...]  # folders or tars without an image, which are not classes
    times: int  # hash of the files' names and last changes that does not depend on their order
    name_ends: Int64s  # (N,)
    name_bytes: NDArray[np.uint8]
    label_ends: Int64s  # (N,)
    labels: NDArray[np.int32]
    member_ends: Int64s  # (N,)
    member_extension: NDArray[np.int32]  # (M,) like the three below
    member_file: NDArray[np.int32]
    member_start: Int64s
    member_length: Int64s
    rows: NDArray[np.int32]  # (N,), or none

    def __len__(self) -> int:
        return len(self.name_ends)

    def name(self, sample: int) -> bytes:
        """Return the sample's name in the source. It does not change when other samples are added or removed."""
        return self.name_bytes[_first(self.name_ends, sample) : self.name_ends[sample]].tobytes()

    def sample(self, sample: int) -> Sample:
        """Return one sample as objects."""
        labels = self.labels[_first(self.label_ends, sample) : self.label_ends[sample]].tolist()
        return Sample(self.name(sample).decode("utf-8", "surrogateescape"), labels, self.members(sample))

    def members(self, sample: int) -> list[Member]:
        """Return the sample's files."""
        of_sample = slice(_first(self.member_ends, sample), int(self.member_ends[sample]))
        columns = (self.member_extension, self.member_file, self.member_start, self.member_length)
        rows = zip(*(column[of_sample].tolist() for column in columns), strict=True)
        return [Member(self.extensions[extension], *byte_range) for extension, *byte_range in rows]

    def take(self, samples: NDArray[np.integer]) -> Listing:
        """Return these samples alone, in this order."""
        member_ends, members = _positions(self.member_ends, samples)
        label_ends, labels = _positions(self.label_ends, samples)
        name_ends, name_bytes = _copy_names(self, samples)
        used, member_file = np.unique(self.member_file[members], return_inverse=True)
        return replace(
            self,
            files=self.files if self.layout == "files" else tuple(self.files[i] for i in used),
            origins=self.origins if self.layout == "files" else tuple(self.origins[i] for i in used),
            rows=self.rows[samples] if len(self.rows) else self.rows,
            name_ends=name_ends,
            name_bytes=name_bytes,
            label_ends=label_ends,
            labels=self.labels[labels],
            member_ends=member_ends,
            member_extension=self.member_extension[members],
            member_file=member_file.astype(np.int32),
            member_start=self.member_start[members],
            member_length=self.member_length[members],
        )

    def relabel(self, values: NDArray[np.integer], classes: Sequence[str] | None) -> Listing:
        """Return the listing with every label l replaced by values[l]."""
        labels = values[self.labels].astype(np.int32) if len(self.labels) else self.labels
        return replace(self, labels=labels, classes=None if classes is None else tuple(classes))

    def tar_bytes(self) -> Int64s:
        """Return each sample's size in a tar: (N,)."""
        padded = TAR_BLOCK_BYTES + -(-self.member_length // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES
        total = np.concatenate([[0], np.cumsum(padded)])
        label_bytes = np.where(np.diff(self.label_ends, prepend=0) > 0, 2 * TAR_BLOCK_BYTES, 0)
        return np.diff(total[self.member_ends], prepend=0) + label_bytes

    def digest(self) -> str:
        """Return a hash of names, labels, kinds and sizes. The source's location is not part of it."""
        result = hashlib.blake2b(repr((self.extensions, self.classes)).encode(), digest_size=16)
        for values in (
            self.name_ends,
            self.name_bytes,
            self.label_ends,
            self.labels,
            self.member_ends,
            self.member_extension,
            self.member_start,
            self.member_length,
        ):
            result.update(np.ascontiguousarray(values).data)
        return result.hexdigest()

    def save(self, path: Path) -> None:
        """Write the listing to a file that `load_listing` reads."""
        arrays = {STORED_NAMES.get(name, name): np.ascontiguousarray(getattr(self, name)) for name in ARRAYS}
        facts = json.dumps({name: getattr(self, name) for name in FACTS})
        path.write_bytes(save(arrays, metadata={"facts": facts, "digest": _digest_stored(arrays, facts)}))


FACTS = (
    "layout", "class_source", "passed_over", "times", "files", "origins", "extensions", "classes", "first_passed_over",
    "empty_classes",
)  # fmt: skip
COLUMNS = ("name_bytes", "labels", "member_start", "member_length", "rows")  # columns that are joined as they are
ENDS = ("name_ends", "label_ends", "member_ends")
ARRAYS = (*COLUMNS, *ENDS, "member_extension", "member_file")
STORED_NAMES = {"rows": "places"}  # columns whose name in the file is another


def load_listing(path: Path) -> Listing:
    """Read what `Listing.save` wrote.

    Raises:
        DataError: it is damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {stored: file.get_tensor(stored) for stored in (STORED_NAMES.get(name, name) for name in ARRAYS)}
            metadata = file.metadata()
        if metadata["digest"] != _digest_stored(arrays, metadata["facts"]):
            raise ValueError("its content is not what was written")
        facts = {name: tuple(v) if isinstance(v, list) else v for name, v in parse_json(metadata["facts"]).items()}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it and start again") from error
    return Listing(**facts, **{name: arrays[STORED_NAMES.get(name, name)] for name in ARRAYS})


def _digest_stored(arrays: dict[str, Any], facts: str) -> str:
    digest = hashlib.blake2b(facts.encode(), digest_size=16)
    for name in (STORED_NAMES.get(name, name) for name in ARRAYS):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(arrays[name].data)
    return digest.hexdigest()


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

    def note_time(self, name: str, time_ns: int) -> None:
        """Note when a file was last changed: a file that is replaced may have the size that it had before."""
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


def _first(ends: Int64s, sample: int) -> int:
    return int(ends[sample - 1]) if sample else 0


def _positions(ends: Int64s, samples: NDArray[np.integer]) -> tuple[Int64s, Int64s]:
    """Return the samples' own ends, and the positions of their values among all values."""
    starts = np.where(samples > 0, ends[samples - 1], 0)
    lengths = ends[samples] - starts
    new_ends = np.cumsum(lengths)
    return new_ends, np.arange(new_ends[-1] if len(new_ends) else 0) + np.repeat(starts - (new_ends - lengths), lengths)


def _copy_names(listing: Listing, samples: NDArray[np.integer]) -> tuple[Int64s, NDArray[np.uint8]]:
    """Copy names a piece at a time: the location of each byte takes eight bytes."""
    ends = listing.name_ends
    lengths = ends[samples] - np.where(samples > 0, ends[samples - 1], 0)
    pieces = (samples[i : i + COPIED_AT_ONCE] for i in range(0, len(samples), COPIED_AT_ONCE))
    copied = [listing.name_bytes[_positions(ends, piece)[1]] for piece in pieces]
    return np.cumsum(lengths), np.concatenate([np.zeros(0, np.uint8), *copied])
