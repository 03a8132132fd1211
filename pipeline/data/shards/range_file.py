"""Read a file of a store in blocks of bytes, through any function that fetches a range."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

KEPT_BLOCKS = 4


class RangeFile(io.RawIOBase):
    """Reads a file forwards at one request a block. Steps back within the last few blocks cost no request.

    Args:
        fetch: returns all bytes from a start to an end, or raises.
        num_bytes: size of the file.
        block_bytes: bytes of one request.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], *, num_bytes: int, block_bytes: int) -> None:
        self._fetch = fetch
        self._num_bytes = num_bytes
        self._block_bytes = block_bytes
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._num_bytes:
            return 0
        number, offset = divmod(self._position, self._block_bytes)
        part = memoryview(self._block(number))[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            start = number * self._block_bytes
            self._blocks[number] = self._fetch(start, min(start + self._block_bytes, self._num_bytes))
            if len(self._blocks) > KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]
