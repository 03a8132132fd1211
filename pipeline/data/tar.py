"""The samples of a WebDataset tar, by byte ranges: consecutive members of the same key are one sample."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.errors import DataError

UNIT = tarfile.BLOCKSIZE  # bytes: headers have one, data is filled up to whole ones
BLANK = bytes(UNIT)
COMPRESSED_STARTS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")  # gzip, bzip2, xz, zstd, lz4


@dataclass(frozen=True, slots=True)
class TarMember:
    """One file of a sample: bytes [start, start + length) of the tar."""

    extension: str  # in lower case, after the first dot of the name
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class TarSample:
    """Members of one key; with their headers they fill bytes [start, end) of the tar."""

    key: str  # the path up to the first dot of its last part
    start: int
    end: int
    members: tuple[TarMember, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    """Whatever has a header."""

    name: str
    is_file: bool
    data_start: int
    length: int
    end: int  # where the next header begins


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member as WebDataset sees them, cut at the first dot of the last part; an empty key for none.

    Hidden files (`._000017.jpg`, left by a Mac) are none; webdataset makes one sample a folder of them.
    """
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    return (folder + slash + stem, extension) if stem and dot else ("", "")


def scan_samples(file: BinaryIO, *, name: str) -> Iterator[TarSample]:
    """Read a tar's headers, from the place the file stands at.

    Folders, links and names without a dot are no samples; PAX and GNU headers travel with their member. A tar without
    its end blocks is read to its last member.

    Args:
        name: of the tar, for messages.

    Raises:
        DataError: compressed, cut short inside a member, damaged, several tars joined, or not a tar.
    """
    key: str | None = None
    start = end = 0
    members: list[TarMember] = []
    for header_start, entry in _entries(file, name):
        entry_key, extension = split_name(entry.name)
        if not entry_key or not entry.is_file:
            continue
        if entry_key != key:
            if key is not None:
                yield TarSample(key, start, end, tuple(members))
            key, start, members = entry_key, header_start, []
        end = entry.end
        members.append(TarMember(extension.lower(), entry.data_start, entry.length))
    if key is not None:
        yield TarSample(key, start, end, tuple(members))


def _entries(file: BinaryIO, name: str) -> Iterator[tuple[int, _Entry]]:
    """Where each header begins, extended ones included, and what it says."""
    at = file.tell()
    while True:
        header = file.read(UNIT)
        if at == 0 and header.startswith(COMPRESSED_STARTS):
            raise _unusable(name, "compressed")
        if len(header) < UNIT and header.strip(b"\0"):
            raise _unusable(name, f"its last {len(header)} bytes are part of a header")
        if len(header) < UNIT or header == BLANK:
            _check_end(file, name, at)
            return
        entry = _read_plain(header, at) or _read_pax(file, header, at) or _read_any(file, at, name)
        yield at, entry
        if entry.end > at + UNIT:
            file.seek(entry.end - 1)  # a byte that is there tells a whole member from one that is cut short
            if not file.read(1):
                raise _unusable(name, f"cut short: member {entry.name!r} needs {entry.end} bytes")
        at = entry.end
        file.seek(at)


def _read_plain(header: bytes, at: int) -> _Entry | None:
    """An ordinary file's header, which nearly all are; None for any other, or a damaged one. Seven times as fast as tarfile."""
    if header[156:157] not in (b"0", b"\0") or header[257:262] != b"ustar":
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
    if whole.endswith("/"):  # how very old tars mark a folder
        return None
    return _Entry(whole, True, at + UNIT, length, at + UNIT + -(-length // UNIT) * UNIT)


def _read_pax(file: BinaryIO, header: bytes, at: int) -> _Entry | None:
    """An ordinary file behind a PAX header, which Python's writers add for the fractions of a second; None for anything else."""
    if header[156:157] != b"x" or header[257:262] != b"ustar" or not header[124:135].isdigit():
        return None
    length = int(header[124:135], 8)
    body = file.read(-(-length // UNIT) * UNIT)
    plain_at = at + UNIT + len(body)
    entry = _read_plain(file.read(UNIT), plain_at)
    records = body[:length]
    if entry is None or any(word in records for word in (b" path=", b" size=", b"GNU.sparse", b"charset=")):
        return None
    return entry


def _read_any(file: BinaryIO, at: int, name: str) -> _Entry:
    """A member whatever its kind: long names in PAX or GNU headers, folders, links, large files."""
    file.seek(at)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            info = tar.next()
    except (tarfile.TarError, EOFError) as error:
        raise _unusable(name, f"no header at byte {at}: {error}") from error
    if info is None:
        raise _unusable(name, f"no header at byte {at}")
    length = info.size if info.isreg() else 0
    return _Entry(info.name, info.isreg(), info.offset_data, length, info.offset_data + -(-length // UNIT) * UNIT)


def _check_end(file: BinaryIO, name: str, at: int) -> None:
    """Behind the end of a tar there is nothing but filling."""
    while part := file.read(1 << 20):
        if part.strip(b"\0"):
            raise _unusable(
                name, f"ends at byte {at}, but there is data behind it: tars were joined (`tar -A` joins them rightly)"
            )


def _unusable(name: str, reason: str) -> DataError:
    return DataError(
        f"{name}: not a whole, uncompressed tar ({reason}); shards must be plain .tar files, so `gunzip` or `zstd -d` a "
        f"compressed one, and copy a damaged one again"
    )
