"""Tars of every dialect, and what tarfile and the scanner read of them, for tests."""

from __future__ import annotations

import io
import tarfile

from pipeline.data.shards.tar import scan_samples


def write(members: list[tuple[str, int, bytes, float]], *, format: int) -> bytes:
    """Write members (name, size, type, time of change) of zeros; names that the dialect cannot hold are left out."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, size, kind, mtime in members:
            info = tarfile.TarInfo(name)
            if kind == tarfile.AREGTYPE and len(name) >= 100:  # tarfile itself takes some of these for folders
                kind = tarfile.REGTYPE
            info.type, info.mtime = kind, mtime  # type: ignore[assignment]
            info.size = size if kind in (tarfile.REGTYPE, tarfile.AREGTYPE) else 0
            try:
                tar.addfile(info, io.BytesIO(bytes(info.size)))
            except ValueError:  # a name that this dialect cannot hold
                continue
    return buffer.getvalue()


TWO = [("0.jpg", 1000, tarfile.REGTYPE, 0), ("1.jpg", 1000, tarfile.REGTYPE, 0)]
WHOLE = write(TWO, format=tarfile.USTAR_FORMAT)


def as_tarfile_reads(data: bytes) -> dict[str, bytes]:
    """Return contents by name, as tarfile reads them; links are followed."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        files = {info.name: tar.extractfile(info) for info in tar if info.isreg() or info.islnk() or info.issym()}
        return {name: file.read() for name, file in files.items() if file is not None}


def as_we_read(data: bytes) -> dict[str, bytes]:
    """Return contents by name, as the scanner locates them."""
    samples = scan_samples(io.BytesIO(data), name="x.tar")
    return {
        f"{s.key}.{m.extension}": m.read(lambda start, length: data[start : start + length]) for s in samples for m in s.members
    }
