"""The samples of a WebDataset tar, by byte ranges: consecutive members of the same key are one sample."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from webdataset.tariterators import base_plus_ext

from pipeline.errors import DataError


@dataclass(frozen=True)
class TarMember:
    """One file of a sample: bytes [start, start + length) of the tar."""

    extension: str  # in lower case, after the first dot of the name
    start: int
    length: int


@dataclass(frozen=True)
class TarSample:
    """Members of one key; with their headers they fill bytes [start, end) of the tar."""

    key: str  # the path up to the first dot of its last part
    start: int
    end: int
    members: tuple[TarMember, ...]


def scan_samples(file: BinaryIO, *, name: str) -> Iterator[TarSample]:
    """Read a tar's headers, from the place the file stands at.

    Folders, links and names without a dot are no samples; PAX and GNU headers travel with their member. A tar without
    its end blocks is read to its last member.

    Args:
        name: of the tar, for messages.

    Raises:
        DataError: compressed, cut short inside a member, or not a tar.
    """
    key: str | None = None
    start = end = 0
    members: list[TarMember] = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                member_key, extension = base_plus_ext(info.name) if info.isreg() else (None, None)
                if member_key is not None and extension is not None:
                    if member_key != key:
                        if key is not None:
                            yield TarSample(key, start, end, tuple(members))
                        key, start, members = member_key, info.offset, []
                    end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    members.append(TarMember(extension.lower(), info.offset_data, info.size))
                tar.members = []  # type: ignore[misc]  # tarfile keeps every header otherwise
            file.seek(tar.offset)
            if any(file.read(tarfile.BLOCKSIZE)):  # tarfile takes a header that it cannot read for the end
                raise tarfile.ReadError(f"what stands at byte {tar.offset} is no header")
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{name}: not a whole, uncompressed tar ({error}); shards must be plain .tar files, so `gunzip` or "
            f"`zstd -d` a compressed one, and copy a damaged one again"
        ) from error
    if key is not None:
        yield TarSample(key, start, end, tuple(members))
