"""Name where shards and records go, a folder of this machine or of a store, and where the work's own files are meanwhile."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.shards.folder import ShardFolder, is_remote
from pipeline.files import remove_drafts

WORK_NAME = ".make"  # exists while `make` works: notes of finished shards, images copied out of tables, passes' files


@dataclass(frozen=True)
class Output:
    """Names the places of one `make`.

    Attributes:
        root: folder or URL that gets make.json.
        parts: folders of shards below it: "" alone for the root itself, or train and val.
        work: folder of this machine, or of all workers' common file system, for files that only the work needs.
    """

    root: str
    parts: tuple[str, ...]
    work: Path

    @property
    def is_remote(self) -> bool:
        return is_remote(self.root)

    def folder(self, part: str) -> str:
        """Return the path or URL of a folder of shards."""
        return f"{self.root}/{part}" if part else self.root

    def path(self, name: str) -> str:
        """Return the path or URL of a file below the root."""
        return f"{self.root}/{name}"

    def store(self, part: str = "") -> ShardFolder:
        """Return what lists, reads and writes small files of a folder."""
        return ShardFolder(self.folder(part))

    def tar_sizes(self) -> dict[str, int]:
        """Return the sizes in bytes of all tars, by their names below the root.

        Raises:
            DataError: the store cannot be reached.
        """
        found: dict[str, int] = {}
        for part in self.parts:
            store = self.store(part)
            tars = [name for name in store.list_names() if name.endswith(".tar") and not name.startswith(".")]
            found |= {f"{part}/{name}".removeprefix("/"): size for name, size in store.sizes(tars).items()}
        return found

    def _folders(self) -> list[Path]:
        return [self.work, *(() if self.is_remote else map(Path, map(self.folder, self.parts)))]

    def make_folders(self) -> None:
        """Make the folders of shards and the work's. A store has no folders."""
        for folder in self._folders():
            folder.mkdir(parents=True, exist_ok=True)

    def remove_drafts(self) -> None:
        """Remove what a killed command left half-written; under a lock."""
        for folder in self._folders():
            remove_drafts(folder)


def find_work(root: str, scratch: str | None) -> Path:
    """Return the folder for files that only the work needs; the same for every command of the same output.

    Args:
        scratch: folder that the user names; below it, outputs have folders of their own.
    """
    if scratch is None and not is_remote(root):
        return Path(root) / WORK_NAME
    place = root.rstrip("/") if is_remote(root) else os.path.realpath(root)
    name = f"make-{hashlib.blake2b(os.fsencode(place), digest_size=8).hexdigest()}"
    return (Path(scratch) if scratch is not None else Path(tempfile.gettempdir(), f"data-tools-{os.getuid()}")) / name
