"""Find the files that a list names, on a disk, in a store or on a web server."""

from __future__ import annotations

import os
from pathlib import Path

from data_tools.make.sources.stored import Entry, join, list_all, look_at, split_path
from pipeline.data.shards.folder import is_remote
from pipeline.data.shards.web import is_web


class NamedFiles:
    """Finds files by their names in a folder.

    A folder of a store is listed once, when the first of its files is asked for: that is one request for a thousand files. It
    takes some 300 bytes of memory a file. A web server is asked for each file, as it need not list anything.

    Args:
        folder: a path or URL; names are relative to it, or begin with it.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._listed: dict[str, dict[str, Entry]] = {}

    def relative(self, name: str) -> str:
        """Return a name relative to the folder, where it is the whole URL of a file in it."""
        return name.removeprefix(f"{self.folder}/") if is_remote(self.folder) else name

    def is_quoted(self, cell: str) -> bool:
        """Return whether a cell may be a whole URL as browsers write it, with %20 for a blank."""
        return is_web(self.folder) and "%" in cell and cell.startswith(f"{self.folder}/")

    def find(self, name: str) -> Entry | None:
        """Return what is known of a file; None if there is none.

        Raises:
            UnreachableError: the store cannot be reached.
        """
        path = join(self.folder, name)
        if not is_remote(self.folder):
            if not os.path.isfile(path):
                return None
            stat = os.stat(path)
            return Entry(name, "file", stat.st_size, stat.st_mtime_ns)
        if is_web(self.folder):
            return look_at(path)
        parent, leaf = split_path(path)
        if parent not in self._listed:
            self._listed[parent] = {entry.name: entry for entry in list_all(parent) if entry.kind == "file"}
        return self._listed[parent].get(leaf)

    def exists(self, name: str) -> bool:
        """Return whether anything has this name."""
        return self.find(name) is not None if is_remote(self.folder) else Path(join(self.folder, name)).exists()
