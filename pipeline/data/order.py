"""Which sample stands at which position of a run: the order, as a pure function of (block sizes, seed, position).

Every epoch permutes all blocks and deals them to C canonical streams; a stream plays its blocks one after another,
each shuffled inside, from a place of its own on and round to that place again. Row r of the epoch is the r-th sample
of every stream that is still playing, so neighbouring positions come from C different blocks, and streams need their
next blocks at different times. C belongs to the run: ranks and workers only divide positions among them, and with
C = the global batch size a block is read by one of them alone.

What is kept is in proportion to the streams asked for, not to the corpus: a worker that serves few pays for few.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.counter import Permutation, Purpose, derive_key, permutation, random_bits

Int64s = NDArray[np.int64]
ORDER_VERSION = 2  # of the law below; a run never goes on under another


@dataclass(frozen=True)
class Located:
    """Where each of n positions' samples lie: arrays of length n."""

    epoch: Int64s
    block: Int64s
    slot: Int64s  # place of the sample in the block, in the file's order


@dataclass(frozen=True)
class _Stream:
    """One stream's blocks in an epoch, in the order it plays them."""

    blocks: Int64s  # (n,) block ids
    starts: Int64s  # (n,) samples of the stream before each of them


class SampleOrder:
    """The order of one corpus under one seed.

    Args:
        block_samples: samples in each block of the index.
        seed: the run's seed.
        num_streams: C; at most the number of blocks is used.
    """

    def __init__(self, block_samples: NDArray[np.integer], *, seed: int, num_streams: int) -> None:
        self.block_samples = block_samples
        self.num_blocks = len(block_samples)
        self.num_samples = int(block_samples.sum(dtype=np.int64))
        self.num_streams = max(1, min(num_streams, self.num_blocks))
        self.seed = seed
        # Nearly all blocks are full, so an epoch is planned from the few that are not: a shard's last ones.
        self.full_block = int(block_samples.max())
        self.short_blocks = np.flatnonzero(block_samples != self.full_block)
        # Two epochs at most are alive at once: a batch may straddle a boundary.
        self._epoch = lru_cache(maxsize=2)(lambda epoch: _Epoch(self, epoch))

    def __reduce__(self) -> tuple[Any, ...]:
        # Plans do not travel to a worker process; they are made anew there.
        return _restore_order, (self.block_samples, self.seed, self.num_streams)

    def locate(self, positions: Int64s) -> Located:
        """Find the samples at these positions of the run (0 is the first image of the first epoch)."""
        positions = np.asarray(positions, np.int64)
        epochs = positions // self.num_samples
        blocks, slots = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            blocks[chosen], slots[chosen] = self._epoch(int(epoch)).locate(positions[chosen] % self.num_samples)
        return Located(epoch=epochs, block=blocks, slot=slots)


def _restore_order(block_samples: NDArray[np.integer], seed: int, num_streams: int) -> SampleOrder:
    return SampleOrder(block_samples, seed=seed, num_streams=num_streams)


class _Epoch:
    """One epoch of an order. Streams are made when first asked for."""

    def __init__(self, order: SampleOrder, epoch: int) -> None:
        self._order = order
        self._epoch = epoch
        num_streams, num_blocks = order.num_streams, order.num_blocks
        self._blocks = Permutation(derive_key(order.seed, Purpose.BLOCKS_OF_EPOCH, epoch), num_blocks)
        dealt = (num_blocks - np.arange(num_streams) + num_streams - 1) // num_streams  # blocks of each stream
        lengths = dealt * order.full_block
        missing = order.full_block - np.asarray(order.block_samples[order.short_blocks], np.int64)
        np.subtract.at(lengths, self._blocks.inverse(order.short_blocks) % num_streams, missing)
        # Longest streams first, so the streams still playing at any row are a prefix.
        self._dealt_as = np.argsort(-lengths, kind="stable")  # (C,) place in the row to the number it was dealt as
        self._lengths = lengths[self._dealt_as]
        bits = random_bits(derive_key(order.seed, Purpose.STREAM_PHASE, epoch), np.arange(num_streams))
        self._phases = (bits % np.minimum(self._lengths, order.full_block).astype(np.uint64)).astype(np.int64)
        # Segments: runs of rows in which the same streams play.
        last_rows, last_counts = np.unique(self._lengths, return_counts=True)  # ascending
        self._segment_row = np.concatenate([[0], last_rows[:-1]])
        self._segment_streams = num_streams - np.concatenate([[0], np.cumsum(last_counts)[:-1]])
        sizes = (last_rows - self._segment_row) * self._segment_streams
        self._segment_position = np.cumsum(sizes) - sizes
        self._streams: dict[int, _Stream] = {}
        self._inside = lru_cache(maxsize=4 * num_streams)(self._make_inside)

    def locate(self, positions: Int64s) -> tuple[Int64s, Int64s]:
        """Blocks and slots at positions of this epoch."""
        segment = np.searchsorted(self._segment_position, positions, side="right") - 1
        beyond = positions - self._segment_position[segment]
        row = self._segment_row[segment] + beyond // self._segment_streams[segment]
        stream = beyond % self._segment_streams[segment]
        turn = (row + self._phases[stream]) % self._lengths[stream]
        found = [self._find(int(s), int(t)) for s, t in zip(stream, turn, strict=True)]
        blocks, slots = np.array(found, np.int64).reshape(-1, 2).T
        return blocks, slots

    def _find(self, stream: int, turn: int) -> tuple[int, int]:
        """Block and slot of a stream's sample number `turn`."""
        if stream not in self._streams:
            self._streams[stream] = self._make_stream(stream)
        played = self._streams[stream]
        place = int(np.searchsorted(played.starts, turn, side="right")) - 1
        block = int(played.blocks[place])
        return block, int(self._inside(block)[turn - int(played.starts[place])])

    def _make_stream(self, stream: int) -> _Stream:
        blocks = self._blocks(np.arange(self._dealt_as[stream], self._order.num_blocks, self._order.num_streams))
        sizes = np.asarray(self._order.block_samples[blocks], np.int64)
        return _Stream(blocks=blocks, starts=np.cumsum(sizes) - sizes)

    def _make_inside(self, block: int) -> Int64s:
        return permutation(
            derive_key(self._order.seed, Purpose.INSIDE_BLOCK, self._epoch, block), int(self._order.block_samples[block])
        )
