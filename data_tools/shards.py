"""List the shards that a command is given, by a folder, a URL or a single tar, and read the samples in each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.shard_names import check_finished, remark
from pipeline.data.shards.folder import COMPRESSED, ShardFolder, UnreachableError, describe_hub_path, is_remote
from pipeline.data.shards.tar import TarMember, TarSample, scan_samples
from pipeline.data.shards.tar_headers import is_empty_tar
from pipeline.errors import DataError


@dataclass(frozen=True)
class ShardList:
    """Names the shards of one folder."""

    folder: str
    names: tuple[str, ...]
    compressed: tuple[str, ...]  # tars that must be unpacked before anything can read them
    is_single: bool  # one tar was named, not its folder
    hidden: tuple[str, ...] = ()  # files passed over: their names begin with a dot
    remarks: tuple[str, ...] = ()  # remarks on the folder's names

    @property
    def output_folder(self) -> Path:
        """Return the folder for findings unless an option says otherwise: next to the shards, or for a URL the current one."""
        return Path() if is_remote(self.folder) else Path(self.folder)

    @property
    def output_prefix(self) -> str:
        """Return the prefix of the findings' names: those on one tar of a folder are not those on the folder."""
        return f"{(*self.names, *self.compressed)[0].removesuffix('.tar')}." if self.is_single else ""


def list_shards(path: str) -> ShardList:
    """Return the tars of a folder or URL, or the one tar that is named.

    Raises:
        DataError: no such path, or no tars in it.
    """
    head, slash, name = path.rstrip("/").rpartition("/")
    if name.endswith((".tar", *COMPRESSED)):
        folder = ShardFolder((head or slash) or ".")
        if not folder.filesystem.isfile(folder.full_path(name)):
            raise DataError(f"shard {path!r} does not exist")
        names, is_single = [name], True
    else:
        folder, is_single = ShardFolder(path), False
        names = folder.list_names()
        check_finished(names, source=path)
    found = (
        ()
        if is_single
        else tuple(remark(names, [name for name in names if name.endswith(".tar") and not name.startswith(".")]))
    )
    names = [name for name in names if is_single or not name.startswith(".")]
    shards = tuple(name for name in names if name.endswith(".tar"))
    compressed = tuple(name for name in names if name.endswith(COMPRESSED))
    if not shards and not compressed:
        raise DataError(f"shard folder {path!r} does not exist or holds no .tar files{describe_hub_path(str(path))}")
    hidden = () if is_single else tuple(folder.hidden_tars())
    return ShardList(folder=folder.path, names=shards, compressed=compressed, is_single=is_single, hidden=hidden, remarks=found)


def describe_hidden(names: Sequence[str]) -> str:
    """Return a line for the terminal; empty if no files are hidden."""
    if not names:
        return ""
    return (
        f"passed over: {len(names)} hidden files, {names[0]} first (names that begin with a dot; macOS leaves such "
        "files next to others)\n"
    )


def shard_version(folder: str, name: str) -> str:
    """Return a value that changes whenever the shard does.

    Raises:
        UnreachableError: it cannot be reached.
    """
    with store_errors(name):
        return ShardFolder(folder).version(name)


def is_whole(result: Mapping[str, Any]) -> bool:
    """Return whether a shard's findings are remembered. A shard that is broken, or seems so, is checked again."""
    return result["broken"] is None


class Shard:
    """Reads one open shard once, from front to back.

    Raises:
        UnreachableError: it cannot be opened.
    """

    def __init__(self, folder: str, name: str) -> None:
        self.name = name
        shards = ShardFolder(folder)
        with store_errors(name):
            self.num_bytes = shards.size(name)
            self._file = shards.open(name)

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def samples(self) -> Iterator[TarSample]:
        """Yield every sample of the tar.

        Raises:
            DataError: compressed, damaged or truncated.
            UnreachableError: it cannot be read.
        """
        with store_errors(self.name):
            yield from scan_samples(self._file, name=self.name)

    def read(self, member: TarMember, num_bytes: int | None = None) -> bytes:
        """Return a member's bytes, or the first of them.

        Raises:
            DataError: a sparse file too large for memory.
            UnreachableError: it cannot be read.
        """
        return member.read(self._read_range, num_bytes)

    def _read_range(self, start: int, length: int) -> bytes:
        with store_errors(self.name):
            self._file.seek(start)
            data = self._file.read(length)
        if len(data) != length:
            raise UnreachableError(f"{self.name}: could not be read ({len(data)} of {length} bytes came)")
        return data

    def is_empty_tar(self) -> bool:
        """Return whether the tar holds no member at all."""
        with store_errors(self.name):
            return is_empty_tar(self._file)


@contextmanager
def store_errors(name: str) -> Iterator[None]:
    """Raise what keeps a shard from being read as an error that names it.

    Raises:
        UnreachableError: a link that leads nowhere, no permission, a store that fails.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise UnreachableError(
            f"{name}: it is in the listing, but not there: deleted meanwhile, or a link to a file that has not been fetched "
            f"(`git annex get` or `datalad get` fetch theirs)"
        ) from error
    except OSError as error:
        raise UnreachableError(f"{name}: could not be read ({type(error).__name__}: {error})") from error
