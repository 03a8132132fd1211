"""Read the headers of a tar of any dialect, one by one: names, byte ranges, links and sparse maps."""

from __future__ import annotations

import posixpath
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, NamedTuple, cast

from pipeline.data.shards.member_names import split_name
from pipeline.data.stand_ins import refuse_stand_in
from pipeline.errors import DataError

UNIT = tarfile.BLOCKSIZE  # bytes: a header takes one unit, data is padded to whole units
BLANK = bytes(UNIT)
GNU_MAGIC = b"ustar  \0"
COMPRESSED_STARTS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")  # gzip, bzip2, xz, zstd, lz4
MAX_EMPTY_BYTES = 1 << 20  # limit of a tar without members, which is zeros; writers pad up to 10 KiB, seldom more
MAX_TAR_BYTES = 1 << 62  # a larger offset is damage
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


class Piece(NamedTuple):
    """Locates a part of a sparse member that the tar holds. Between the pieces there are zeros."""

    offset: int  # offset in the member
    start: int  # offset in the tar
    length: int


@dataclass(frozen=True, slots=True)
class TarEntry:
    """Describes anything that has a header."""

    name: str
    kind: Literal["file", "link", "other"]
    data_start: int
    length: int
    end: int  # offset of the next header
    pieces: tuple[Piece, ...] | None = None
    target: str = ""  # target of a link: a name in the tar


def is_empty_tar(file: BinaryIO) -> bool:
    """Return whether a tar holds no member at all, as writers leave it that were closed before their first sample."""
    file.seek(0)
    return file.read(UNIT) == BLANK


def read_entries(file: BinaryIO, name: str) -> Iterator[tuple[int, TarEntry]]:
    """Yield where each header begins, extended ones included, and what it says.

    Raises:
        DataError: not a whole tar, compressed, damaged, or a later volume of several.
    """
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


def _read_plain(header: bytes, at: int) -> TarEntry | None:
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
    return TarEntry(whole, "file", at + UNIT, length, at + UNIT + _filled(length))


def _filled(length: int) -> int:
    return -(-length // UNIT) * UNIT


def _read_pax(file: BinaryIO, header: bytes, at: int) -> TarEntry | None:
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


def _read_any(file: BinaryIO, at: int, name: str) -> TarEntry:
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


def _describe(file: BinaryIO, info: tarfile.TarInfo, end: int, name: str) -> TarEntry:
    if info.type == b"M":
        raise DataError(
            f"{name}: begins inside member {info.name!r}: it is one volume of an archive of several (`tar -M`); unpack them "
            "together and pack the files again"
        )
    if (info.islnk() or info.issym()) and not _has_data(file, info):
        folder = posixpath.dirname(info.name) if info.issym() else ""
        target = posixpath.normpath(posixpath.join(folder, info.linkname))
        return TarEntry(info.name, "link", info.offset_data, 0, end, target=target)
    if info.type not in (*tarfile.REGULAR_TYPES, tarfile.LNKTYPE):
        if info.type not in TYPES_WITHOUT_DATA_OF_OURS and split_name(info.name)[0]:
            raise DataError(f"{name}: member {info.name!r} is of the unknown type {info.type!r}; pack the files again")
        return TarEntry(info.name, "other", info.offset_data, 0, end)
    if info.sparse is None:
        return TarEntry(info.name, "file", info.offset_data, info.size, info.offset_data + _filled(info.size))
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
    return TarEntry(info.name, "file", info.offset_data, info.size, end, tuple(pieces))


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
