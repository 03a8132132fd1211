"""Read samples from wherever a source stores them: whole files, or byte ranges of files, on this machine or in a store."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from data_tools.ahead import map_ahead
from data_tools.make.sources.listing import Listing, Sample
from data_tools.make.sources.stored import join, open_stored, split_path
from pipeline.data.shards.folder import CONCURRENT_QUESTIONS, ShardFolder, is_remote
from pipeline.errors import DataError

MAX_OPEN_FILES = 128
MAX_OPEN_REMOTE = 2  # each keeps some blocks in memory; files of a store are read one behind the other


class SourceFiles:
    """Reads samples. Files that many samples share are kept open.

    Whole files of a store are asked for some at a time, ahead of the sample that is needed: each is a request.
    """

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._open: OrderedDict[str, BinaryIO] = OrderedDict()
        self._is_remote = listing.layout == "files" and is_remote(listing.files[0])

    def __enter__(self) -> SourceFiles:
        return self

    def __exit__(self, *_: Any) -> None:
        for file in self._open.values():
            file.close()

    def read_all(self) -> Iterator[tuple[Sample, dict[str, bytes]]]:
        """Yield every sample of the listing, in its order, with the bytes of its members by extension.

        Raises:
            DataError: gone, unreadable, or not as long as it was listed.
        """
        samples = map(self._listing.sample, range(len(self._listing)))
        yield from map_ahead(self._read, samples, threads=CONCURRENT_QUESTIONS if self._is_remote else 1)

    def _read(self, sample: Sample) -> dict[str, bytes]:
        if self._listing.layout == "files":
            path = join(self._listing.files[0], sample.name)
            try:
                data = self._read_whole(path, sample.members[0].length)
            except OSError as error:
                raise DataError(f"{path}: {error.strerror or 'it is gone since it was listed'}") from error
            self._check(path, len(data), sample.members[0].length)
            return {sample.members[0].extension: data}
        return {
            extension: self._read_range(self._listing.files[file], start, length)
            for extension, file, start, length in sample.members
        }

    def _read_whole(self, path: str, num_bytes: int) -> bytes:
        if not self._is_remote:
            return Path(path).read_bytes()
        folder, name = split_path(path)
        return ShardFolder(folder).read_whole(name, num_bytes)

    def _read_range(self, path: str, start: int, length: int) -> bytes:
        try:
            if path not in self._open:
                if len(self._open) >= (MAX_OPEN_REMOTE if is_remote(path) else MAX_OPEN_FILES):
                    self._open.popitem(last=False)[1].close()
                self._open[path] = open_stored(path)
            self._open.move_to_end(path)
            data = self._read_open(path, start, length)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from error
        self._check(path, len(data), length)
        return data

    def _read_open(self, path: str, start: int, length: int) -> bytes:
        file = self._open[path]
        if not is_remote(path):
            return os.pread(file.fileno(), length, start)
        file.seek(start)
        return file.read(length)

    def _check(self, path: str, num_bytes: int, expected: int) -> None:
        if num_bytes != expected:
            raise DataError(
                f"{path}: {num_bytes} bytes where {expected} were when it was listed; it has changed or was truncated"
            )
