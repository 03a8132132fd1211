"""Find an index file: next to its shards, in another folder, or as the local copy of a remote one."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from pipeline.data.shards.folder import ShardFolder, is_remote
from pipeline.errors import DataError
from pipeline.files import write_whole
from pipeline.json_text import parse_json

INDEX_NAME = "index.safetensors"
MAX_HEADER_BYTES = 1 << 20
READ_ERRORS = (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, OverflowError)


def find_index(folder: str, index: str | None) -> tuple[str, str]:
    """Return where an index lies: folder and name of its file.

    Args:
        folder: folder of the shards.
        index: another folder, or a file; None if it lies next to the shards.
    """
    if index is None:
        return folder, INDEX_NAME
    if not index.endswith(".safetensors"):
        return index, INDEX_NAME
    head, _, name = index.rpartition("/")
    return head or ("/" if index.startswith("/") else "."), name


def identify(folder: str) -> str:
    """Return a folder's name, the same from every working folder."""
    return folder.rstrip("/") if is_remote(folder) else os.path.realpath(folder)


def read_owner(index_folder: str, name: str) -> str | None:
    """Return the folder of the shards that an index file belongs to; None if there is no such file.

    Raises:
        DataError: a file that is not an index written with `--out`.
    """
    folder = ShardFolder(index_folder)
    if not folder.exists(name):
        return None
    try:
        with open(local_file(folder, name), "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            return str(parse_json(file.read(min(size, MAX_HEADER_BYTES)))["__metadata__"]["shards"])
    except READ_ERRORS as error:
        raise DataError(
            f"{folder.full_path(name)} exists already, and is not an index that `--out` wrote; choose another folder or file"
        ) from error


def local_file(folder: ShardFolder, name: str) -> str:
    """Return the index file, or a local copy of a remote one, named after URL and object version and made once a machine.

    Raises:
        DataError: another user owns the folder of the copies.
    """
    if not folder.is_remote:
        return folder.full_path(name)
    version = hashlib.blake2b(f"{folder.full_path(name)} {folder.version(name)}".encode(), digest_size=16).hexdigest()
    copies = Path(tempfile.gettempdir()) / f"shard-indexes-{os.getuid()}"
    copies.mkdir(mode=0o700, exist_ok=True)
    if copies.stat().st_uid != os.getuid():
        raise DataError(f"{copies} belongs to another user; remove it, or set TMPDIR to a folder of your own")
    copy = copies / f"{version}.safetensors"
    if not copy.exists():
        write_whole(copy, folder.read(name), durability="unflushed")
    return str(copy)
