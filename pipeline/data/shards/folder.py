"""List and read a folder of shards, local or behind any fsspec URL (s3://, gs://, https://): its tars by name."""

from __future__ import annotations

import functools
import io
import re
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from fsspec.asyn import AsyncFileSystem, sync
from fsspec.core import url_to_fs

from pipeline.data.ranges import read_range
from pipeline.data.shards.range_file import RangeFile
from pipeline.data.shards.retry import retry
from pipeline.data.shards.web import WebFile, check_listing, client_options, is_web, look_at
from pipeline.errors import DataError
from pipeline.files import Draft, write_whole

Result = TypeVar("Result")

COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2", ".tar.lz4")
READ_AHEAD_BYTES = 4 << 20
PATIENCE_S = 30.0  # for listings and small files, before anything has begun
CONCURRENT_QUESTIONS = 16
READ_ONLY = {
    "http://": "a web server",
    "https://": "a web server",
    "hf://": "a repository on the Hugging Face hub",
}  # nothing is written there
WRITABLE = "hf://buckets/"
NO_FILE = re.compile(r"[/?#]|^(mailto|javascript|data):")  # in a link of a listing; a file's own ? and # are escaped there


def is_remote(path: str) -> bool:
    """Return whether a path is a URL."""
    return "://" in path


def describe_read_only(path: str) -> str | None:
    """Return what kind of read-only store a path is, where no file can be written to any of that kind; None for all others."""
    kind = next((kind for begin, kind in READ_ONLY.items() if path.startswith(begin)), None)
    return None if path.startswith(WRITABLE) else kind


def describe_hub_path(path: str) -> str:
    """Return what is often wrong with a path on the Hugging Face hub where nothing is found, for the end of a message."""
    if not path.startswith("hf://"):
        return ""
    if not path.startswith(("hf://datasets/", WRITABLE)):
        return "; data sets are at hf://datasets/OWNER/NAME"
    return "; a private or gated repository shows nothing without HF_TOKEN (and without its terms being accepted)"


class UnreachableError(DataError):
    """A file or store cannot be read. Unlike damaged data it may be readable the next time."""


class ShardFolder:
    """Lists and opens the tars of a folder.

    Raises:
        DataError: the URL's protocol is unknown, its package is not installed, or it carries a password.
    """

    def __init__(self, path: str) -> None:
        self.path = path.rstrip("/") or "/"
        self.is_remote = is_remote(path)
        if self.is_remote and "@" in path.partition("://")[2].partition("/")[0]:
            raise DataError("a shard URL must hold no user or password; credentials come from the environment alone")
        try:
            options = client_options(self.path.partition("://")[0]) if is_web(self.path) else {}
            self.filesystem, self.root = cast("tuple[Any, str]", url_to_fs(self.path, **options))
        except ImportError as error:
            raise DataError(f"data folder {path!r}: {error} (`pip install` the package it names)") from error
        except (OSError, ValueError) as error:
            raise DataError(f"data folder {path!r} cannot be reached: {error}") from error

    def full_path(self, name: str) -> str:
        """Return a file of the folder as its file system names it."""
        return f"{self.root}/{name}"

    def list_names(self) -> list[str]:
        """Return the names of all files directly in the folder, sorted; none if there is no folder.

        Raises:
            DataError: it cannot be reached.
        """
        return sorted(str(e["name"]).rpartition("/")[2] for e in self._list() if e["type"] != "directory")

    def list_folders(self) -> list[str]:
        """Return the names of the folders directly in the folder, sorted; none if there is no folder.

        Raises:
            DataError: it cannot be reached.
        """
        return sorted(str(e["name"]).rstrip("/").rpartition("/")[2] for e in self._list() if e["type"] == "directory")

    def entries(self) -> list[dict[str, Any]]:
        """Return what the store says of each file and folder directly in the folder; nothing if there is no folder.

        It takes one listing. Nothing of it is kept in memory: a store may hold millions of files.

        Raises:
            DataError: it cannot be reached.
        """

        def list_now() -> list[dict[str, Any]]:
            if is_web(self.path):
                check_listing(self.filesystem, self.root)
            return self.filesystem.ls(self.root, detail=True, refresh=True)

        try:
            listed = self._call(list_now)
        except (FileNotFoundError, NotADirectoryError):
            return []
        finally:
            self.filesystem.invalidate_cache(self.root)
        return self._own(listed)

    def _own(self, listed: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return what lies in the folder of all that a listing has.

        Consoles of stores make an empty object named like a folder. Listings of web servers have links to sort them, to other
        pages and to addresses.

        Raises:
            DataError: a name has an empty part, which a path cannot name.
        """
        root = self.root.rstrip("/")
        if not self.is_remote:
            return list(listed)
        if is_web(self.path):
            names = [str(entry["name"]).removeprefix(f"{root}/").rstrip("/") for entry in listed]
            return [entry for entry, name in zip(listed, names, strict=True) if name and NO_FILE.search(name) is None]
        if self.path.startswith("s3://") and any(e["type"] == "directory" and str(e["name"]) == f"{root}/" for e in listed):
            raise DataError(f"{self.path} holds keys with an empty part, {self.path}//...: no path names these; rename them")
        return [entry for entry in listed if str(entry["name"]).rstrip("/") != root]

    def _list(self) -> list[dict[str, Any]]:
        def list_now() -> list[dict[str, Any]]:
            if is_web(self.path):
                check_listing(self.filesystem, self.root)
            if self.filesystem.isdir(self.root):
                return self._own(self.filesystem.ls(self.root, detail=True, refresh=True))
            if self.is_remote and not is_web(self.path):
                self.filesystem.info(self.root)  # raises where the store could not say: `isdir` is false then too
            return []

        try:
            return self._call(list_now)
        except FileNotFoundError:
            return []

    def _call(self, function: Callable[[], Result]) -> Result:
        """Call the file system, and retry a few times if needed.

        Raises:
            FileNotFoundError: no such file.
            UnreachableError: the store cannot be reached, or refuses.
        """
        try:
            return retry(function, patience_s=PATIENCE_S if self.is_remote else 0)
        except (FileNotFoundError, DataError):
            raise
        except Exception as error:  # stores' libraries have errors of their own
            raise UnreachableError(f"data folder {self.path!r} cannot be reached: {type(error).__name__}: {error}") from error

    def exists(self, name: str) -> bool:
        """Return whether a file exists."""
        return self._call(lambda: self.filesystem.exists(self.full_path(name)))

    def read(self, name: str) -> bytes:
        """Return all of a small file."""
        return self._call(lambda: self.filesystem.cat_file(self.full_path(name)))

    def read_whole(self, name: str, num_bytes: int) -> bytes:
        """Return all of a file that had so many bytes. If others come, and the store still says so many, it is read again.

        Raises:
            FileNotFoundError: no such file.
            UnreachableError: the store cannot be reached, or sends another number each time.
        """

        def read() -> bytes:
            # Of a whole file s3fs asks for the size first. The byte too many tells a longer file. An empty one has no range.
            path = self.full_path(name)
            whole = not num_bytes
            data = self.filesystem.cat_file(path) if whole else read_range(self.filesystem, path, start=0, end=num_bytes + 1)
            if len(data) != num_bytes and self.size(name) == num_bytes:
                raise OSError(f"{len(data)} of {num_bytes} bytes came")
            return data

        return self._call(read)

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all.

        Raises:
            DataError: it cannot be written.
        """
        if self.is_remote:  # object stores show a file once it is whole
            self._call(lambda: self.filesystem.pipe_file(self.full_path(name), data))
            return
        try:
            Path(self.root).mkdir(parents=True, exist_ok=True)
            write_whole(self.full_path(name), data)
        except OSError as error:
            raise DataError(f"{self.full_path(name)} cannot be written: {error.strerror or error}") from error

    def why_unwritable(self) -> str | None:
        """Return why no file can be written there, found out by writing one; None if it can. A local folder is made."""
        if (kind := describe_read_only(self.path)) is not None:
            return f"{kind} takes no files"
        name = f".can-be-written-{uuid.uuid4().hex}"
        try:
            if self.is_remote:
                self._put_once(name)
                self._call(lambda: self.filesystem.rm_file(self.full_path(name)))
            else:
                Path(self.root).mkdir(parents=True, exist_ok=True)
                with Draft(self.full_path(name), durability="unflushed") as draft:
                    draft.file.write(b"x")
        except TimeoutError:
            return f"a byte could not be written within {PATIENCE_S:.0f} s"
        except Exception as error:  # stores' libraries have errors of their own
            return str(getattr(error, "strerror", None) or error) or type(error).__name__
        return None

    def _put_once(self, name: str) -> None:
        """Write a byte, for a limited time: libraries try for minutes what a store refuses with the wrong code."""
        if isinstance(self.filesystem, AsyncFileSystem):
            sync(self.filesystem.loop, self.filesystem._pipe_file, self.full_path(name), b"x", timeout=PATIENCE_S)
        else:
            self.filesystem.pipe_file(self.full_path(name), b"x")

    def version(self, name: str) -> str:
        """Return a file's size, times and checksums, as the store reports them. They change when it is written again."""
        if is_web(self.path):  # fsspec's information there includes the URL behind redirects, which is signed each time
            return self.look(name).version
        return self._call(lambda: str(self.filesystem.info(self.full_path(name))))

    def look(self, name: str) -> WebFile:
        """Return the size and version of a web server's file, in one request.

        Raises:
            FileNotFoundError: no such file.
            UnreachableError: the server cannot be reached.
        """
        return self._call(lambda: look_at(self.filesystem, self.full_path(name)))

    def facts(self, name: str) -> dict[str, Any]:
        """Return what the store says of a file now: its size, times and checksums, under names of the store's own.

        Raises:
            FileNotFoundError: no such file.
            UnreachableError: the store cannot be reached.
        """

        def ask() -> dict[str, Any]:
            self.filesystem.invalidate_cache(self.root)  # an earlier listing is older
            return dict(self.filesystem.info(self.full_path(name)))

        return self._call(ask)

    def list_shards(self) -> list[str]:
        """Return the names of the folder's tars, sorted, without hidden ones: see `hidden_tars`.

        Raises:
            DataError: no folder, no tars in it, or compressed ones.
        """
        names = [name for name in self.list_names() if not name.startswith(".")]
        compressed = [name for name in names if name.endswith(COMPRESSED)]
        if compressed:
            raise DataError(
                f"{self.path}: {compressed[0]} is compressed; range reads need plain tars: `gunzip` (or `zstd -d`) them first"
            )
        shards = [name for name in names if name.endswith(".tar")]
        if not shards:
            raise DataError(f"shard folder {self.path!r} does not exist or holds no .tar files{describe_hub_path(self.path)}")
        return shards

    def hidden_tars(self) -> list[str]:
        """Return tars that are passed over because their names begin with a dot, like files that macOS leaves."""
        return [name for name in self.list_names() if name.startswith(".") and name.endswith((".tar", *COMPRESSED))]

    def open(self, name: str) -> BinaryIO:
        """Open a file of the folder, to be read mostly forwards. Failed requests to a store are retried.

        Raises:
            FileNotFoundError: no such file.
            UnreachableError: raised here, or when the file is read.
        """
        if not self.is_remote:
            return open(self.full_path(name), "rb")
        fetch = functools.partial(self.read_range, name)
        return io.BufferedReader(RangeFile(fetch, num_bytes=self.size(name), block_bytes=READ_AHEAD_BYTES))

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """Return bytes [start, end) of a file: all of them."""

        def read() -> bytes:
            data = read_range(self.filesystem, self.full_path(name), start=start, end=end)
            if len(data) > end - start:
                raise DataError(f"{self.path}/{name}: {len(data)} bytes came where {end - start} were requested")
            if len(data) != end - start:
                raise OSError(f"{len(data)} of {end - start} bytes came")
            return data

        return self._call(read)

    def size(self, name: str) -> int:
        """Return the size of a file in bytes.

        Raises:
            FileNotFoundError: no such file.
            DataError: the server does not report it.
        """
        if is_web(self.path):
            return self.look(name).num_bytes
        size = self._call(lambda: self.filesystem.size(self.full_path(name)))
        if size is None:
            raise DataError(f"{self.path}/{name}: the server does not tell its size, so it serves no byte ranges")
        return int(size)

    def sizes(self, names: Sequence[str]) -> dict[str, int]:
        """Return the sizes in bytes of the files that exist, by one listing where the file system's listings have sizes.

        Raises:
            DataError: the folder cannot be reached.
        """
        entries = [] if is_web(self.path) else self._list()  # web servers list no sizes, and need not list anything
        listed = {str(entry["name"]).rpartition("/")[2]: entry.get("size") for entry in entries}

        def ask(name: str) -> int | None:
            try:
                return int(listed.get(name) or self.size(name))
            except FileNotFoundError:
                return None

        with ThreadPoolExecutor(CONCURRENT_QUESTIONS) as pool:
            return {name: size for name, size in zip(names, pool.map(ask, names), strict=True) if size is not None}
