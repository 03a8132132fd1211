"""Read a range of bytes of a remote file, and no more than that."""

from __future__ import annotations

from typing import Any

from fsspec.asyn import AsyncFileSystem
from fsspec.caching import BaseCache
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem


def read_range(filesystem: Any, path: str, *, start: int, end: int) -> bytes:
    """Return bytes [start, end) of a file, or fewer where it is shorter.

    Where a file system has no range request, fsspec opens the file and reads. Such files prefetch megabytes (hf:// 5 MiB) for
    sequential readers, and blocks in random order would be downloaded several times.
    """
    if _has_ranges(type(filesystem)):
        return filesystem.cat_file(path, start=start, end=end)
    with filesystem.open(path, "rb") as file:
        if isinstance(file, AbstractBufferedFile):
            opened: Any = file
            opened.cache = BaseCache(opened.blocksize, opened._fetch_range, opened.size)
        file.seek(start)
        return file.read(end - start)


def _has_ranges(kind: type) -> bool:
    """Return whether a file system's class has a range request of its own, be it one that its instances call from `cat_file`.

    Opened, a file of S3 takes a request for its size before each range.
    """
    own = (getattr(kind, "cat_file", None), getattr(kind, "_cat_file", None))
    return own[0] is not AbstractFileSystem.cat_file or own[1] not in (None, AsyncFileSystem._cat_file)
