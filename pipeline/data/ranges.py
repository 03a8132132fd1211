"""Read a range of bytes of a remote file, and no more than that."""

from __future__ import annotations

from typing import Any

from fsspec.caching import BaseCache
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem


def read_range(filesystem: Any, path: str, *, start: int, end: int) -> bytes:
    """Return bytes [start, end) of a file, or fewer where it is shorter.

    Where a file system has no range request, fsspec opens the file and reads. Such files prefetch megabytes (hf:// 5 MiB) for
    sequential readers, and blocks in random order would be downloaded several times.
    """
    if getattr(type(filesystem), "cat_file", None) is not AbstractFileSystem.cat_file:
        return filesystem.cat_file(path, start=start, end=end)
    with filesystem.open(path, "rb") as file:
        if isinstance(file, AbstractBufferedFile):
            opened: Any = file
            opened.cache = BaseCache(opened.blocksize, opened._fetch_range, opened.size)
        file.seek(start)
        return file.read(end - start)
