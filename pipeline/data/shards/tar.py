"""List the samples of a WebDataset tar, by byte ranges: consecutive members of the same key are one sample."""

from __future__ import annotations

import posixpath
import struct
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, NamedTuple, cast

from pipeline.data.stand_ins import refuse_stand_in
from pipeline.errors import DataError

UNIT = tarfile.BLOCKSIZE  # bytes: a header takes one unit, data is padded to whole units
BLANK = bytes(UNIT)
GNU_MAGIC = b"ustar  \0"
COMPRESSED_STARTS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")  # gzip, bzip2, xz, zstd, lz4
MAX_EMPTY_BYTES = 1 << 20  # limit of a tar without members, which is zeros; writers pad up to 10 KiB, seldom more
MAX_TAR_BYTES = 1 << 62  # a larger offset is damage
MAX_SPARSE_BYTES = 1 << 28  # a sparse member larger than this is not filled with zeros
# Devices, pipes and folders, GNU's volume label, folder of an incremental backup and list of long names, Solaris' attributes.
TYPES_WITHOUT_DATA_OF_OURS = (
    tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b"V", b"D", b"N", b"A", b"E",
)  # fmt: skip
MAX_HEADER_BYTES = 1 << 24  # limit of an extended header; names and sparse maps are shorter
# `tarfile` raises these for damaged headers; some of them are not documented.
TAR_ERRORS = (
    tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError, IndexError, KeyError, TypeError, AttributeError,
    struct.error,
)  # fmt: skip

LinkUse = Literal["follow", "mark"]


class Piece(NamedTuple):
    """Locates a part of a sparse member that the tar holds. Between the pieces there are zeros."""

    offset: int  # offset in the member
    start: int  # offset in the tar
    length: int


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


@dataclass(frozen=True, slots=True)
class _Entry:
    """Describes anything that has a header."""

    name: str
    kind: Literal["file", "link", "other"]
    data_start: int
    length: int
    end: int  # offset of the next header
    pieces: tuple[Piece, ...] | None = None
    target: str = ""  # target of a link: a name in the tar


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


def split_name(name: str) -> tuple[str, str]:
    """Return key and extension of a member like WebDataset, cut at the first dot of the last part; an empty key for none.

    Hidden files (`._000017.jpg`, left by a Mac) have none; webdataset makes one sample a folder of them.
    """
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    return (folder + slash + stem, extension) if stem and dot else ("", "")


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
    for header_start, entry in _entries(file, name):
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
    for header_start, entry in _entries(file, name):
        targets.pass_by(entry)
        if entry.kind != "other":
            found = targets.resolve(entry, header_start) if entry.kind == "link" else entry
            yield TarFile(entry.name, found.data_start, found.length, found.pieces)


class _Links:
    """Finds the targets of links. Names are kept from the first link on: a tar of a million files rarely has one."""

    def __init__(self, file: BinaryIO, name: str, begin: int) -> None:
        self._file, self._name, self._begin = file, name, begin
        self._files: dict[str, _Entry] | None = None

    def pass_by(self, entry: _Entry) -> None:
        if self._files is not None and entry.kind == "file":
            self._files[posixpath.normpath(entry.name)] = entry

    def resolve(self, link: _Entry, header_start: int) -> _Entry:
        if self._files is None:
            self._files = {}
            self._file.seek(self._begin)
            for start, entry in _entries(self._file, self._name):
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


def is_empty_tar(file: BinaryIO) -> bool:
    """Return whether a tar holds no member at all, as writers leave it that were closed before their first sample."""
    file.seek(0)
    return file.read(UNIT) == BLANK


def _entries(file: BinaryIO, name: str) -> Iterator[tuple[int, _Entry]]:
    """Yield where each header begins, extended ones included, and what it says."""
    at = file.tell()
    while True:
        header = file.read(UNIT)
        if at == 0:
            refuse_stand_in(header, name=name)
        if at == 0 and header.startswith(COMPRESSED_STARTS):
            raise _unusable(name, "compressed")
        if len(header) < UNIT and header.strip(b"\0"):
            raise _unusable(name, f"its last {len(header)} bytes are part of a header")
        if len(header) < UNIT or header == BLANK:
            _check_end(file, name, at)
            return
        entry = _read_plain(header, at) or _read_pax(file, header, at) or _read_any(file, at, name)
        if entry.length < 0 or not at < entry.end <= MAX_TAR_BYTES:
            raise _unusable(name, f"member {entry.name!r} at byte {at} has a size of {entry.length} bytes")
        yield at, entry
        if entry.end > at + UNIT:
            file.seek(entry.end - 1)  # a byte that exists distinguishes a whole member from a truncated one
            if not file.read(1):
                raise _unusable(name, f"truncated: member {entry.name!r} needs {entry.end} bytes")
        at = entry.end
        file.seek(at)


def _read_plain(header: bytes, at: int) -> _Entry | None:
    """Read an ordinary file's header; None for any other, or a damaged one. It is seven times as fast as tarfile."""
    if header[156:157] not in (b"0", b"\0") or header[257:262] != b"ustar" or header[135] not in (0, 0x20):
        return None
    try:
        length, checksum = int(header[124:135], 8), int(header[148:155].strip(b"\0 "), 8)
    except ValueError:  # large sizes are written in another way
        return None
    if sum(header) - sum(header[148:156]) + 8 * ord(" ") != checksum:
        return None
    path = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[262:263] == b"\0" else b""  # GNU keeps other things there
    whole = (prefix + b"/" + path if prefix else path).decode("utf-8", "surrogateescape")
    if whole.endswith("/"):  # very old tars mark a folder like this
        return None
    return _Entry(whole, "file", at + UNIT, length, at + UNIT + _filled(length))


def _filled(length: int) -> int:
    return -(-length // UNIT) * UNIT


def _read_pax(file: BinaryIO, header: bytes, at: int) -> _Entry | None:
    """Read an ordinary file behind a PAX header, as Python's writers add for fractions of a second; None for anything else."""
    if header[156:157] != b"x" or header[257:262] != b"ustar" or not header[124:135].isdigit() or header[135] not in (0, 0x20):
        return None
    length = int(header[124:135], 8)
    if length > MAX_HEADER_BYTES:
        return None
    body = file.read(_filled(length))
    plain_at = at + UNIT + len(body)
    entry = _read_plain(file.read(UNIT), plain_at)
    records = body[:length]
    if (
        entry is None
        or records[-1:] not in (b"", b"\n")
        or any(word in records for word in (b" path=", b" size=", b"GNU.sparse", b"charset="))
    ):
        return None
    return entry


def _read_any(file: BinaryIO, at: int, name: str) -> _Entry:
    """Read a member of any kind: long names in PAX or GNU headers, folders, links, large and sparse files."""
    file.seek(at)
    header = file.read(UNIT)
    file.seek(at)
    for_all: dict[str, str] = {}  # values of a global PAX header
    try:
        with tarfile.open(fileobj=cast("BinaryIO", _HeaderReader(file)), mode="r:", pax_headers=for_all) as tar:
            info = tar.next()
            end = tar.offset
    except TAR_ERRORS as error:
        raise _unusable(name, f"no header at byte {at}: {error}") from error
    if info is None:
        raise _unusable(name, f"no header at byte {at}")
    if told := [key for key in for_all if key in ("path", "size", "linkpath") or key.startswith("GNU.sparse")]:
        raise DataError(f"{name}: a global PAX header at byte {at} sets {told[0]} for all members; pack the files again")
    if header[257:265] == GNU_MAGIC and (prefix := header[345:500].partition(b"\0")[0].decode("utf-8", "surrogateescape")):
        info.name = info.name.removeprefix(f"{prefix}/")  # GNU keeps times there, which tarfile takes for a folder
    return _describe(file, info, end, name)


class _HeaderReader:
    """Reads a tar safely for `tarfile`: headers claim any size, and `tarfile` requests that many bytes at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, num_bytes: int) -> bytes:
        if num_bytes > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"an extended header of {num_bytes} bytes")
        return self._file.read(num_bytes)


def _describe(file: BinaryIO, info: tarfile.TarInfo, end: int, name: str) -> _Entry:
    if info.type == b"M":
        raise DataError(
            f"{name}: begins inside member {info.name!r}: it is one volume of an archive of several (`tar -M`); unpack them "
            "together and pack the files again"
        )
    if (info.islnk() or info.issym()) and not _has_data(file, info):
        folder = posixpath.dirname(info.name) if info.issym() else ""
        target = posixpath.normpath(posixpath.join(folder, info.linkname))
        return _Entry(info.name, "link", info.offset_data, 0, end, target=target)
    if info.type not in (*tarfile.REGULAR_TYPES, tarfile.LNKTYPE):
        if info.type not in TYPES_WITHOUT_DATA_OF_OURS and split_name(info.name)[0]:
            raise DataError(f"{name}: member {info.name!r} is of the unknown type {info.type!r}; pack the files again")
        return _Entry(info.name, "other", info.offset_data, 0, end)
    if info.sparse is None:
        return _Entry(info.name, "file", info.offset_data, info.size, info.offset_data + _filled(info.size))
    start, filled, pieces = info.offset_data, 0, list[Piece]()
    for offset, length in cast("list[tuple[int, int]]", info.sparse):
        if length == 0:  # useless, and old formats fill their maps up with such
            continue
        if length < 0 or not filled <= offset <= info.size - length:
            raise _unusable(name, f"the map of sparse member {info.name!r} is damaged")
        pieces.append(Piece(offset, start, length))
        start, filled = start + length, offset + length
    if not start <= end < start + UNIT:
        raise _unusable(name, f"the map of sparse member {info.name!r} does not fit its size in the tar")
    return _Entry(info.name, "file", info.offset_data, info.size, end, tuple(pieces))


def _has_data(file: BinaryIO, info: tarfile.TarInfo) -> bool:
    """Return whether the bytes of a hard link's file follow it. Some writers repeat them, others only give their size."""
    if info.issym() or info.size == 0:
        return False
    file.seek(info.offset_data)
    header = file.read(UNIT)
    if header in (b"", BLANK):
        return False
    try:
        tarfile.TarInfo.frombuf(header, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return True
    return False


def _check_end(file: BinaryIO, name: str, at: int) -> None:
    """Check that only padding follows the end of a tar."""
    num_bytes = UNIT
    while part := file.read(1 << 20):
        num_bytes += len(part)
        if part.strip(b"\0"):
            raise _unusable(
                name, f"ends at byte {at}, but there is data behind it: tars were joined (`tar -A` joins them rightly)"
            )
    if at == 0 and num_bytes > MAX_EMPTY_BYTES:
        raise _unusable(name, f"{num_bytes} bytes of zeros: space that a download or a copy set aside and did not fill")


def _unusable(name: str, reason: str) -> DataError:
    return DataError(
        f"{name}: not a whole, uncompressed tar ({reason}); shards must be plain .tar files, so `gunzip` or `zstd -d` a "
        f"compressed one, and copy a damaged one again"
    )
