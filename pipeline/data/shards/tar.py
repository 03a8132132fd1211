"""List the samples of a WebDataset tar, by byte ranges: consecutive members of the same key are one sample."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, NamedTuple

from pipeline.data.shards.member_names import split_name
from pipeline.data.shards.tar_headers import Piece, TarEntry, read_entries
from pipeline.errors import DataError

MAX_SPARSE_BYTES = 1 << 28  # a sparse member larger than this is not filled with zeros

LinkUse = Literal["follow", "mark"]


@dataclass(frozen=True, slots=True)
class TarMember:
    """Locates one file of a sample: bytes [start, start + length) of the tar, or some pieces of it."""

    extension: str  # in lower case, after the first dot of the name
    start: int
    length: int
    pieces: tuple[Piece, ...] | None = None  # pieces of a sparse file
    is_link: bool = False  # link to an earlier member, whose bytes these are; it has no bytes where links are not followed

    def read(self, read_range: Callable[[int, int], bytes], num_bytes: int | None = None) -> bytes:
        """Return the member's bytes, or the first of them.

        Args:
            read_range: returns bytes of the tar from a start, of a length; fewer at the tar's end.

        Raises:
            DataError: a sparse file too large for memory.
        """
        length = self.length if num_bytes is None else min(num_bytes, self.length)
        if self.pieces is None:
            return read_range(self.start, length)
        if length > MAX_SPARSE_BYTES:
            raise DataError(f"a sparse member .{self.extension} of {length} bytes is more than 256 MiB")
        data = bytearray(length)
        for offset, start, size in self.pieces:
            part = read_range(start, max(0, min(size, length - offset)))
            data[offset : offset + len(part)] = part
        return bytes(data)


@dataclass(frozen=True, slots=True)
class TarSample:
    """Holds the members of one key. With their headers they fill bytes [start, end) of the tar, except links."""

    key: str  # the path up to the first dot of its last part
    start: int
    end: int
    members: tuple[TarMember, ...]


@dataclass(frozen=True, slots=True)
class TarFile:
    """Locates a file of a tar, whatever its name is: bytes [start, start + length), or some pieces of it."""

    name: str
    start: int
    length: int
    pieces: tuple[Piece, ...] | None


class Defect(NamedTuple):
    """Says why a sample cannot be trained on as it lies in its tar."""

    kind: Literal["repeated_member", "linked_member"]
    reason: str


def find_defect(sample: TarSample) -> Defect | None:
    """Return what keeps a sample from being read by its byte range; None for nearly all."""
    seen: set[str] = set()
    for member in sample.members:
        if member.extension in seen:
            return Defect(
                "repeated_member",
                f"has two members .{member.extension}: two samples of one key lie next to each other, or their names differ in "
                f"case alone; give every sample a key of its own",
            )
        seen.add(member.extension)
        if member.is_link:
            return Defect(
                "linked_member",
                f"has a member .{member.extension} that is a link to an earlier member; a training reads parts of a tar: pack "
                "it again with `tar --dereference --hard-dereference`, or with `python -m data_tools make`, which copies them",
            )
    return None


def refuse_sparse(found: TarSample | TarFile, tar: str) -> None:
    """Refuse sparse members, for readers of byte ranges alone.

    Raises:
        DataError: a member lies in the tar in pieces.
    """
    if isinstance(found, TarFile):
        names = [found.name] if found.pieces is not None else []
    else:
        names = [f"{found.key}.{member.extension}" for member in found.members if member.pieces is not None]
    if names:
        raise DataError(
            f"{tar}: member {names[0]} is sparse (`tar -S` wrote it in pieces); unpack the tar and pack it again without -S"
        )


def scan_samples(file: BinaryIO, *, name: str, links: LinkUse = "follow") -> Iterator[TarSample]:
    """Read a tar's headers, from its current offset.

    Folders and names without a dot are not samples. PAX and GNU headers travel with their member. A link is read as the earlier
    member that it leads to. A tar without its end blocks is read to its last member.

    Args:
        name: name of the tar, for messages.
        links: "mark" leaves them without bytes; part of a tar does not hold their targets.

    Raises:
        DataError: of no bytes, compressed, truncated inside a member, damaged, several tars joined, part of an archive of
            several volumes, a link to something else than an earlier member, or not a tar.
    """
    begin = file.tell()
    targets = _Links(file, name, begin)
    key: str | None = None
    start = end = 0
    members: list[TarMember] = []
    for header_start, entry in read_entries(file, name):
        if links == "follow":
            targets.pass_by(entry)
        entry_key, extension = split_name(entry.name)
        if not entry_key or entry.kind == "other":
            continue
        is_link = entry.kind == "link"
        found = targets.resolve(entry, header_start) if is_link and links == "follow" else entry
        if entry_key != key:
            if key is not None:
                yield TarSample(key, start, end, tuple(members))
            key, start, members = entry_key, header_start, []
        end = entry.end
        members.append(TarMember(extension.lower(), found.data_start, found.length, found.pieces, is_link))
    if key is not None:
        yield TarSample(key, start, end, tuple(members))


def scan_files(file: BinaryIO, *, name: str) -> Iterator[TarFile]:
    """Yield every file of a tar, also those that are part of no sample. A link is the earlier file that it leads to.

    Raises:
        DataError: like `scan_samples`.
    """
    targets = _Links(file, name, file.tell())
    for header_start, entry in read_entries(file, name):
        targets.pass_by(entry)
        if entry.kind != "other":
            found = targets.resolve(entry, header_start) if entry.kind == "link" else entry
            yield TarFile(entry.name, found.data_start, found.length, found.pieces)


class _Links:
    """Finds the targets of links. Names are kept from the first link on: a tar of a million files rarely has one."""

    def __init__(self, file: BinaryIO, name: str, begin: int) -> None:
        self._file, self._name, self._begin = file, name, begin
        self._files: dict[str, TarEntry] | None = None

    def pass_by(self, entry: TarEntry) -> None:
        if self._files is not None and entry.kind == "file":
            self._files[posixpath.normpath(entry.name)] = entry

    def resolve(self, link: TarEntry, header_start: int) -> TarEntry:
        if self._files is None:
            self._files = {}
            self._file.seek(self._begin)
            for start, entry in read_entries(self._file, self._name):
                if start >= header_start:
                    break
                if entry.kind == "file":
                    self._files[posixpath.normpath(entry.name)] = entry
        target = self._files.get(link.target)
        if target is None:
            raise DataError(
                f"{self._name}: member {link.name!r} is a link to {link.target!r}, which is not an earlier file of this tar; "
                "pack it again with `tar --dereference --hard-dereference`"
            )
        self._files[posixpath.normpath(link.name)] = target
        return target
