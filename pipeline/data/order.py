"""Which sample stands at which position of a run: the order, as a pure function of (block sizes, seed, position).

Every epoch permutes all blocks and deals them to C canonical streams; a stream plays its blocks one after another,
each shuffled inside. Row r of the epoch is the r-th sample of every stream that is still playing, so neighbouring
positions come from C different blocks. C belongs to the run: ranks and workers only divide positions among them,
and with C = the global batch size a block is read by exactly one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.counter import derive_key, permutation

Int64s = NDArray[np.int64]
BLOCKS_OF_EPOCH, INSIDE_BLOCK = 1, 2  # purposes, so that no two keys coincide


@dataclass(frozen=True)
class Located:
    """Where each of n positions' samples lie: arrays of length n."""

    epoch: Int64s
    block: Int64s
    slot: Int64s  # place of the sample in the block, in the file's order


@dataclass(frozen=True)
class _EpochPlan:
    """One epoch's blocks in stream-major order, with what is needed to find a position in O(log n)."""

    blocks: Int64s  # (num_blocks,) block ids, stream after stream
    starts: Int64s  # (num_blocks,) samples before each of them
    stream_start: Int64s  # (streams,) samples before each stream
    segment_position: Int64s  # (segments,) first position of each run of rows with the same set of playing streams
    segment_row: Int64s  # (segments,) its first row
    segment_streams: Int64s  # (segments,) how many streams play in it


class SampleOrder:
    """The order of one corpus under one seed.

    Args:
        block_samples: samples in each block of the index.
        seed: the run's seed.
        num_streams: C; at most the number of blocks is used.
    """

    def __init__(self, block_samples: Int64s, *, seed: int, num_streams: int) -> None:
        self.block_samples = np.asarray(block_samples, np.int64)
        self.num_samples = int(self.block_samples.sum())
        self.num_streams = max(1, min(num_streams, len(self.block_samples)))
        self.seed = seed
        # Two epochs at most are alive at once: a batch may straddle a boundary.
        self._plan = lru_cache(maxsize=2)(self._make_plan)
        self._inside = lru_cache(maxsize=8 * self.num_streams)(self._make_inside)

    def __reduce__(self) -> tuple[Any, ...]:
        # The caches hold bound methods and cannot travel to a worker process; they are made anew there.
        return _restore_order, (self.block_samples, self.seed, self.num_streams)

    def locate(self, positions: Int64s) -> Located:
        """Find the samples at these positions of the run (0 is the first image of the first epoch)."""
        positions = np.asarray(positions, np.int64)
        epochs = positions // self.num_samples
        blocks, slots = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            blocks[chosen], slots[chosen] = self._locate_in_epoch(positions[chosen] % self.num_samples, int(epoch))
        return Located(epoch=epochs, block=blocks, slot=slots)

    def _locate_in_epoch(self, positions: Int64s, epoch: int) -> tuple[Int64s, Int64s]:
        plan = self._plan(epoch)
        segment = np.searchsorted(plan.segment_position, positions, side="right") - 1
        beyond = positions - plan.segment_position[segment]
        row = plan.segment_row[segment] + beyond // plan.segment_streams[segment]
        stream = beyond % plan.segment_streams[segment]
        flat = plan.stream_start[stream] + row
        place = np.searchsorted(plan.starts, flat, side="right") - 1
        blocks = plan.blocks[place]
        inside = flat - plan.starts[place]
        slots = np.fromiter(
            (self._inside(epoch, int(block))[turn] for block, turn in zip(blocks, inside, strict=True)),
            np.int64,
            count=len(blocks),
        )
        return blocks, slots

    def _make_inside(self, epoch: int, block: int) -> Int64s:
        key = derive_key(self.seed, INSIDE_BLOCK, epoch, block)
        return permutation(key, int(self.block_samples[block]))

    def _make_plan(self, epoch: int) -> _EpochPlan:
        order = permutation(derive_key(self.seed, BLOCKS_OF_EPOCH, epoch), len(self.block_samples))
        dealt = [order[stream :: self.num_streams] for stream in range(self.num_streams)]
        lengths = np.array([self.block_samples[blocks].sum() for blocks in dealt], np.int64)
        # Longest streams first, so the streams still playing at any row are a prefix.
        longest_first = np.argsort(-lengths, kind="stable")
        lengths = lengths[longest_first]
        blocks = np.concatenate([dealt[stream] for stream in longest_first])
        ends = np.cumsum(self.block_samples[blocks])
        last_rows, last_counts = np.unique(lengths, return_counts=True)  # ascending
        segment_row = np.concatenate([[0], last_rows[:-1]])
        segment_streams = self.num_streams - np.concatenate([[0], np.cumsum(last_counts)[:-1]])
        segment_size = (last_rows - segment_row) * segment_streams
        return _EpochPlan(
            blocks=blocks,
            starts=ends - self.block_samples[blocks],
            stream_start=np.cumsum(lengths) - lengths,
            segment_position=np.cumsum(segment_size) - segment_size,
            segment_row=segment_row,
            segment_streams=segment_streams,
        )


def _restore_order(block_samples: Int64s, seed: int, num_streams: int) -> SampleOrder:
    return SampleOrder(block_samples, seed=seed, num_streams=num_streams)
