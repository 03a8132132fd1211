"""Open the files of a source, on this machine or in a store, and tell their versions and names."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from pipeline.data.shards.folder import ShardFolder, is_remote
from pipeline.data.shards.web import is_web
from pipeline.errors import DataError

# what stores say of an object that changes with its content; checksums and generations first: a time may have no fractions
CHECKSUMS = ("ETag", "etag", "md5Hash", "content_hash", "generation")
TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")


def split_path(path: str) -> tuple[str, str]:
    """Return a file's folder and its name there, of a path or URL."""
    head, slash, name = path.rpartition("/")
    return (head or slash or "."), name


def file_name(path: str) -> str:
    """Return a file's name for people: of a web server's address, without its escapes."""
    name = split_path(path)[1]
    return unquote(name) if is_web(path) else name


def file_stem(path: str) -> str:
    """Return the same without the ending."""
    name = file_name(path)
    return posixpath.splitext(name)[0]


def list_names(folder: str) -> list[str]:
    """Return the names of a folder's files, as `file_name` gives them; of a local folder also those of folders in it."""
    return (
        [file_name(f"{folder}/{name}") for name in ShardFolder(folder).list_names()]
        if is_remote(folder)
        else os.listdir(folder)
    )


def sizes_of(paths: Sequence[str]) -> dict[str, int]:
    """Return the sizes in bytes of files of one folder."""
    if not is_remote(paths[0]):
        return {path: os.path.getsize(path) for path in paths}
    folder = split_path(paths[0])[0]
    sizes = ShardFolder(folder).sizes([split_path(path)[1] for path in paths])
    return {f"{folder}/{name}": size for name, size in sizes.items()}


def open_stored(path: str) -> BinaryIO:
    """Open a file, to be read mostly forwards. Failed requests to a store are retried, with growing waits.

    Raises:
        OSError: no such file, or it cannot be read.
        UnreachableError: the store cannot be reached; raised here, or when the file is read.
    """
    if not is_remote(path):
        return open(path, "rb")
    folder, name = split_path(path)
    return ShardFolder(folder).open(name)


def read_stored(path: str, start: int, length: int) -> bytes:
    """Return some bytes of a file: fewer at the end of a local one.

    Raises:
        OSError, UnreachableError: as `open_stored`.
    """
    if is_remote(path):
        folder, name = split_path(path)
        return ShardFolder(folder).read_range(name, start, start + length)
    with open(path, "rb") as file:
        return os.pread(file.fileno(), length, start)


def read_small(folder: str, name: str) -> bytes | None:
    """Return a small file of a folder; None if there is none.

    Raises:
        OSError, UnreachableError: as `open_stored`.
    """
    if is_remote(folder):
        store = ShardFolder(folder)
        return store.read(name) if store.exists(name) else None
    file = Path(folder) / name
    return file.read_bytes() if file.exists() else None


def version_of(path: str) -> str:
    """Return a text that changes when the file is written again: size and time, or size and what the store says of it.

    Raises:
        OSError, UnreachableError: as `open_stored`.
    """
    if not is_remote(path):
        stat = os.stat(path)
        return f"{stat.st_size} bytes, changed at {stat.st_mtime_ns} ns"
    folder, name = split_path(path)
    if is_web(path):
        return ShardFolder(folder).version(name)
    facts = ShardFolder(folder).facts(name)
    known = next((names for names in (CHECKSUMS, TIMES) if any(facts.get(one) for one in names)), ())
    return ", ".join([f"{facts.get('size')} bytes", *(f"{one} {facts[one]}" for one in known if facts.get(one))])


def check_version(path: str, before: str, *, doing: str) -> None:
    """Check that a file is still the version that it was.

    Raises:
        DataError: it has changed.
        OSError, UnreachableError: as `open_stored`.
    """
    if (now := version_of(path)) != before:
        raise DataError(f"{path} has changed while it was {doing} (before: {before}; now: {now}); start again when it is final")


def changed_at(path: str) -> int | str:
    """Return when a local file was written, in ns, or a store's version of a file.

    Raises:
        OSError, UnreachableError: as `open_stored`.
    """
    return version_of(path) if is_remote(path) else os.stat(path).st_mtime_ns
