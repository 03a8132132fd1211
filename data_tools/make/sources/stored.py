"""Open the files of a source, on this machine or in a store, and tell their versions and names."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple
from urllib.parse import quote, unquote

from data_tools.ahead import map_ahead
from data_tools.make.sources.files import (
    SIGNATURE_BYTES,
    extension_of,
    find_image_extension,
    image_extension,
    is_junk,
    sniff_named,
)
from pipeline.data.shards.folder import ShardFolder, is_remote
from pipeline.data.shards.web import WebFile, is_web
from pipeline.errors import DataError

# what stores say of an object that changes with its content; checksums and generations first: a time may have no fractions
CHECKSUMS = ("ETag", "etag", "md5Hash", "content_hash", "generation", "blob_id")
TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")


class Entry(NamedTuple):
    """Describes what lies in a folder.

    Attributes:
        name: for people: of a web server's file, without escapes.
        kind: a local link to a folder is none of a folder's own; "other" are devices, and links that lead nowhere.
        version: as `changed_at`, of a file.
    """

    name: str
    kind: Literal["file", "folder", "link to a folder", "other"]
    num_bytes: int = 0
    version: int | str = 0


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


def join(folder: str, name: str) -> str:
    """Return the path of a file, given its name in a folder for people. The name may lead through folders, and through `..`."""
    if not is_remote(folder):
        return os.path.join(folder, name)
    scheme, _, path = f"{folder}/{quote(name) if is_web(folder) else name}".partition("://")
    has_steps = not {".", ".."}.isdisjoint(path.split("/"))  # stores take them for names
    return f"{scheme}://{posixpath.normpath(path) if has_steps else path}"


def list_visible(folder: str) -> list[Entry]:
    """Return what lies directly in a folder and is not hidden or left behind by a system, in no order.

    On a web server each file takes a request besides the listing.

    Raises:
        OSError: a local folder cannot be read.
        UnreachableError: the store cannot be reached.
    """
    if not is_remote(folder):
        with os.scandir(folder) as found:
            return [_local_entry(entry) for entry in found if not is_junk(entry.name)]
    return _list_stored(folder, lambda name: not is_junk(name))


def list_all(url: str) -> list[Entry]:
    """Return the same of a folder of a store, with what is hidden.

    Raises:
        UnreachableError: the store cannot be reached.
    """
    return _list_stored(url, lambda _: True)


def _list_stored(folder: str, takes: Callable[[str], bool]) -> list[Entry]:
    store = ShardFolder(folder)
    for_people = unquote if is_web(folder) else str
    listed = [(str(facts["name"]).rstrip("/").rpartition("/")[2], facts) for facts in store.entries()]
    taken = [(name, facts) for name, facts in listed if takes(for_people(name))]
    folders = [Entry(for_people(name), "folder") for name, facts in taken if facts["type"] == "directory"]
    files = [(name, facts) for name, facts in taken if facts["type"] != "directory"]
    if is_web(folder):
        looks = map_ahead(partial(_look, store), [name for name, _ in files])
        return folders + [Entry(unquote(name), "file", *astuple(look)) for name, look in looks]
    return folders + [Entry(name, "file", int(facts["size"] or 0), _describe_version(facts)) for name, facts in files]


def _look(store: ShardFolder, name: str) -> WebFile:
    try:
        return store.look(name)
    except FileNotFoundError as error:
        raise DataError(f"{store.path}/{name} is in the server's listing, and is not there") from error


def look_at(url: str) -> Entry | None:
    """Return what a web server says of a file; None if there is none.

    Raises:
        UnreachableError: the server cannot be reached.
    """
    folder, name = split_path(url)
    try:
        return Entry(file_name(url), "file", *astuple(ShardFolder(folder).look(name)))
    except FileNotFoundError:
        return None


def _local_entry(entry: os.DirEntry[str]) -> Entry:
    if entry.is_dir(follow_symlinks=False):
        return Entry(entry.name, "folder")
    if entry.is_file():
        stat = entry.stat()
        return Entry(entry.name, "file", stat.st_size, stat.st_mtime_ns)
    return Entry(entry.name, "link to a folder" if entry.is_dir() else "other")


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


def find_extension(path: str, num_bytes: int) -> str | None:
    """Return the extension that an image is stored with; None if the file is no image by its name or first bytes.

    In a store first bytes are a request, so only a file without any ending is looked into.

    Args:
        num_bytes: size of the file.

    Raises:
        OSError, UnreachableError: as `open_stored`.
    """
    if not is_remote(path):
        return find_image_extension(path)
    known = image_extension(path)
    if known is not None or extension_of(path) or not num_bytes:
        return known
    return sniff_named(read_stored(path, 0, min(num_bytes, SIGNATURE_BYTES)), path)


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
    return _describe_version(ShardFolder(folder).facts(name))


def _describe_version(facts: Mapping[str, Any]) -> str:
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
