"""Tell which samples of a shard a training sees: those that its index does not leave out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.shards.folder import ShardFolder
from pipeline.data.shards.index import ShardIndex, load_index
from pipeline.data.shards.index_location import INDEX_NAME
from pipeline.data.shards.tar import TarSample


@dataclass(frozen=True)
class KeptSamples:
    """Holds what the index keeps of one shard."""

    starts: NDArray[np.int64]  # start of each block, in bytes
    ends: NDArray[np.int64]
    skipped: tuple[frozenset[int], ...]  # skipped slots of each block
    num_bytes: int | None  # size of the shard when it was indexed; None if the index does not name it

    @property
    def version(self) -> str:
        """Return a value that changes with what is kept."""
        facts = repr((self.starts.tolist(), self.ends.tolist(), [sorted(slots) for slots in self.skipped], self.num_bytes))
        return hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()

    def mark(self, samples: Iterable[TarSample]) -> Iterator[tuple[TarSample, bool]]:
        """Yield every sample of the shard, and whether it is kept."""
        block, slot = -1, 0
        for sample in samples:
            found = int(np.searchsorted(self.starts, sample.start, side="right")) - 1
            block, slot = (block, slot + 1) if found == block else (found, 0)
            yield sample, block >= 0 and sample.start < self.ends[block] and slot not in self.skipped[block]


def find_index_of(folder: str, index: str | None) -> ShardIndex | None:
    """Return the index of a folder; None if it has none.

    Args:
        index: where it lies, if not next to the shards.

    Raises:
        DataError: no index where one is said to be, one that is damaged, or a folder that cannot be reached.
    """
    if index is None and not ShardFolder(folder).exists(INDEX_NAME):
        return None
    return load_index(folder, index)


def kept_in_shard(index: ShardIndex, name: str) -> KeptSamples:
    """Return what an index keeps of a shard; nothing if it does not name the shard."""
    if name not in index.shard_names:
        return KeptSamples(np.zeros(0, np.int64), np.zeros(0, np.int64), (), None)
    shard = index.shard_names.index(name)
    first, last = index.shard_first_block[shard : shard + 2].tolist()
    starts = np.array(index.block_offset[first:last])
    return KeptSamples(
        starts=starts,
        ends=starts + index.block_bytes[first:last],
        skipped=tuple(frozenset(index.skipped_in(block)) for block in range(first, last)),
        num_bytes=int(index.shard_bytes[shard]),
    )
