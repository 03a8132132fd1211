"""Read remote blocks through fsspec: concurrent range requests with read-ahead, retries and a disk cache.

The store may be slow, reset connections, answer with errors, send too little or be unreachable for a while. A read is retried,
with growing random waits, until `patience_s` has passed since its first failure. Every failure is counted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import xxhash
from fsspec.asyn import AsyncFileSystem, sync

from pipeline.data.ranges import read_range
from pipeline.data.shards.blocks import BlockBytes, FileBlock, MemoryBlock, OpenFile
from pipeline.data.shards.folder import ShardFolder
from pipeline.data.shards.index import BlockRange, ShardIndex
from pipeline.data.shards.retry import is_permanent, retry
from pipeline.errors import DataError
from pipeline.files import write_whole

CONCURRENT_READS = 16
CHECKSUM_BYTES = 8


@dataclass(frozen=True)
class RemoteOptions:
    """Says how shards behind a URL are read.

    Args:
        timeout_s: timeout of one request.
        patience_s: how long a read may fail before the run stops.
        cache_dir: local folder that keeps blocks; None keeps none.
        cache_bytes: how much of each corpus it may hold.
    """

    timeout_s: float = 60.0
    patience_s: float = 600.0
    cache_dir: str | None = None
    cache_bytes: int = 0


class Retry(NamedTuple):
    """Describes a failed request that was retried."""

    shard: str
    reason: str


class BlockCache:
    """Keeps blocks on a local disk: those of the first `num_bytes` bytes of the corpus, once they have been read.

    Every epoch reads every block once, in another order. So any kept part answers the same share of reads, and keeping a fixed
    part needs no bookkeeping: any number of processes use the folder at once, and it never grows beyond its limit.
    """

    def __init__(self, index: ShardIndex, *, folder: str, num_bytes: int) -> None:
        self._folder = Path(folder) / index.fingerprint
        self._index = index
        self._limit = num_bytes
        self._shard_start = np.concatenate([[0], np.cumsum(index.shard_bytes)])
        self.damaged = 0

    def path_of(self, block: int) -> Path | None:
        """Return the path where a block is kept; None if it is not among those that are."""
        index = self._index
        shard = int(np.searchsorted(index.shard_first_block, block, side="right")) - 1
        end = int(self._shard_start[shard]) + int(index.block_offset[block]) + int(index.block_bytes[block])
        checksums = CHECKSUM_BYTES * (block + 1)
        return self._folder / f"{block // 1000:06d}" / str(block) if end + checksums <= self._limit else None

    def get(self, block: int) -> bytes | None:
        """Return a block's bytes; None where they are not kept, or damaged."""
        path = self.path_of(block)
        if path is None:
            return None
        try:
            stored = path.read_bytes()
        except FileNotFoundError:
            return None
        data, checksum = stored[:-CHECKSUM_BYTES], stored[-CHECKSUM_BYTES:]
        if len(data) != self._index.block_bytes[block] or xxhash.xxh3_64_digest(data) != checksum:
            self.damaged += 1
            return None
        return data

    def put(self, block: int, data: bytes) -> None:
        """Keep a block, whole or not at all.

        Raises:
            DataError: the folder cannot be written to.
        """
        path = self.path_of(block)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data + xxhash.xxh3_64_digest(data), durability="unflushed")
        except OSError as error:
            raise DataError(
                f"block cache {self._folder}: {error}; make room or choose another folder (data.cache_dir), or less of it "
                f"(data.cache_gib)"
            ) from error


class RemoteSource:
    """Reads blocks of a corpus behind a URL, several at a time in threads."""

    def __init__(self, index: ShardIndex, options: RemoteOptions) -> None:
        self._folder = ShardFolder(index.folder)
        self._index = index
        self._options = options
        self._todo: SimpleQueue[tuple[int, Future[BlockBytes]]] = SimpleQueue()
        # These are daemons, unlike an executor's threads: a process that has what it needs may end in the middle of a read.
        for number in range(CONCURRENT_READS):
            threading.Thread(target=self._work, name=f"read-block-{number}", daemon=True).start()
        self.cache: BlockCache | None = None
        if options.cache_dir is not None:
            self.cache = BlockCache(index, folder=options.cache_dir, num_bytes=options.cache_bytes)
        self._retries: SimpleQueue[Retry] = SimpleQueue()

    def start(self, block: int) -> Callable[[], BlockBytes]:
        """Begin to read a block. The returned function waits for it. The block stays in memory, or in the cache on disk.

        Raises (when waited for):
            DataError: shard missing or truncated, no permission, or failures for longer than the patience.
        """
        future: Future[BlockBytes] = Future()
        self._todo.put((block, future))
        return future.result

    def take_retries(self) -> list[Retry]:
        """Return the failed requests since the last call."""
        return [self._retries.get() for _ in range(self._retries.qsize())]

    def _work(self) -> None:
        while True:
            block, future = self._todo.get()
            try:
                future.set_result(self._read(block))
            except BaseException as error:  # it is raised where somebody waits for the block
                future.set_exception(error)

    def _read(self, block: int) -> BlockBytes:
        wanted = self._index.byte_range(block)
        kept = self.cache.path_of(block) if self.cache else None
        if self.cache is None or kept is None:
            return MemoryBlock(self._fetch(wanted))
        if self.cache.get(block) is None:
            self.cache.put(block, self._fetch(wanted))
        return FileBlock(OpenFile(kept), offset=0, num_bytes=wanted.num_bytes)

    def _fetch(self, wanted: BlockRange) -> bytes:
        def count(error: Exception) -> None:
            self._retries.put(Retry(wanted.shard, f"{type(error).__name__}: {error}"))

        begin = time.monotonic()
        try:
            return retry(lambda: self._request(wanted), patience_s=self._options.patience_s, on_failure=count)
        except Exception as error:
            raise self._explain(wanted, error, elapsed_s=time.monotonic() - begin) from error

    def _request(self, wanted: BlockRange) -> bytes:
        filesystem: Any = self._folder.filesystem
        path, end = self._folder.full_path(wanted.shard), wanted.offset + wanted.num_bytes
        if isinstance(filesystem, AsyncFileSystem):
            timeout_s = self._options.timeout_s
            data: Any = sync(filesystem.loop, filesystem._cat_file, path, start=wanted.offset, end=end, timeout=timeout_s)
        else:
            data = read_range(filesystem, path, start=wanted.offset, end=end)
        if len(data) > wanted.num_bytes:
            raise ValueError(
                f"{len(data)} bytes came where {wanted.num_bytes} were requested: the server sends no parts of files"
            )
        if len(data) != wanted.num_bytes:
            raise EOFError(f"{len(data)} bytes came of {wanted.num_bytes}")
        return data

    def _explain(self, wanted: BlockRange, error: Exception, *, elapsed_s: float) -> DataError:
        shard = f"{self._index.folder}/{wanted.shard}"
        where = f"{shard} bytes {wanted.offset}-{wanted.offset + wanted.num_bytes}"
        if isinstance(error, FileNotFoundError):
            return DataError(f"{shard} is missing; restore it, or index the folder again")
        if isinstance(error, EOFError):
            return DataError(f"{where}: only part of it comes ({error}); the shard is truncated, or its index is another's")
        if is_permanent(error):
            return DataError(f"{where} cannot be read: {type(error).__name__}: {error}")
        return DataError(
            f"{where} could not be read for {elapsed_s:.0f} s ({type(error).__name__}: {error}); the run resumes from its last "
            f"checkpoint when the store does. data.read_patience_s sets how long to try"
        )
