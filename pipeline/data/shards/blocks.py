"""Read a block's bytes, in memory or in a file, in parts: headers first, images when they are needed."""

from __future__ import annotations

import io
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

HEADERS_BYTES = 4096  # bytes of one read: the headers between two images and the small members between them


class BlockBytes(Protocol):
    """Reads a block in parts."""

    @property
    def num_bytes(self) -> int:
        """Return the number of bytes in the block: fewer than in the index if the shard is truncated."""
        ...

    def open(self) -> BinaryIO:
        """Open the block for a scan from its start."""
        ...

    def read(self, start: int, length: int) -> bytes:
        """Read a range of the block; fewer bytes where the block ends."""
        ...


class MemoryBlock:
    """Reads a block in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.num_bytes = len(data)

    def open(self) -> BinaryIO:
        return io.BytesIO(self._data)

    def read(self, start: int, length: int) -> bytes:
        return self._data[start : start + length]


class FileBlock:
    """Reads a block in a file.

    Nothing is kept: the system's page cache does that better. Hundreds of blocks, in every worker, would take gigabytes, and
    copying them would take a tenth of the time of decoding.

    Args:
        descriptor: opens the file; called for each read.
    """

    def __init__(self, descriptor: Callable[[], int], *, offset: int, num_bytes: int) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self.num_bytes = max(0, min(num_bytes, os.fstat(descriptor()).st_size - offset))

    def open(self) -> BinaryIO:
        return io.BufferedReader(_BlockStream(self), HEADERS_BYTES)

    def read(self, start: int, length: int) -> bytes:
        length = min(length, self.num_bytes - start)  # what follows in the file is another block's
        return os.pread(self._descriptor(), max(0, length), self._offset + start)


class _BlockStream(io.RawIOBase):
    """Reads a file block as a file of its own."""

    def __init__(self, block: FileBlock) -> None:
        super().__init__()
        self._block = block
        self._at = 0

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer)
        data = self._block.read(self._at, len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._block.num_bytes}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


class OpenFile:
    """Closes a descriptor when nobody needs it any more."""

    def __init__(self, path: str | Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def __call__(self) -> int:
        return self._descriptor
