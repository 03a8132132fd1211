"""A range of a remote file is read exactly, and a file system without range requests is asked for no more than the range."""

from __future__ import annotations

from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from pipeline.data.ranges import read_range

DATA = bytes(range(256)) * 8


class WithoutRanges(AbstractFileSystem):
    """Opens files that prefetch, as hf:// does, and counts the bytes that are fetched."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[tuple[int, int]] = []

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": len(DATA), "type": "file"}

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **_: Any) -> AbstractBufferedFile:
        return _File(self, path, mode=mode, block_size=512, size=len(DATA))


class _File(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        self.fs.fetched.append((start, end))
        return DATA[start:end]


@pytest.mark.parametrize(("start", "end"), [(0, 1), (5, 700), (100, 100), (2000, 2048), (2040, 5000)])
def test_the_bytes_are_those_of_the_slice(start: int, end: int) -> None:
    memory = MemoryFileSystem()
    memory.pipe_file("/ranges.bin", DATA)
    assert read_range(memory, "/ranges.bin", start=start, end=end) == DATA[start:end]
    assert read_range(WithoutRanges(), "x", start=start, end=end) == DATA[start:end]
    memory.rm("/ranges.bin")


def test_nothing_is_prefetched_where_there_is_no_range_request() -> None:
    filesystem = WithoutRanges()
    read_range(filesystem, "x", start=100, end=200)
    assert filesystem.fetched == [(100, 200)]
    with fsspec.core.OpenFile(filesystem, "x") as file:  # what a reader does by itself: it takes a block more
        file.seek(100)
        file.read(100)
    assert sum(end - start for start, end in filesystem.fetched[1:]) > 100
