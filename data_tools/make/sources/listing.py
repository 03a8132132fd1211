"""Store what a source holds, sample by sample (byte ranges, classes, name), in arrays instead of objects.

A sample takes some 70 to 100 bytes, so that fourteen million of them fit into the memory of one process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
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
    "layout",
    "class_source",
    "passed_over",
    "times",
    "files",
    "origins",
    "extensions",
    "classes",
    "first_passed_over",
    "empty_classes",
)
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
