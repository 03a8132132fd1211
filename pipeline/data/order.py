"""Compute which sample is at which position of a run: the order, as a pure function of (block sizes, seed, position).

Every epoch permutes all blocks, lays their samples end to end, and cuts this line into C canonical streams of equal length (to
one sample). Position q of the epoch is sample q // C of stream q mod C, so neighbouring positions come from C offsets of the
line. Each stream starts at its own offset in its first block and wraps around at its end, so that streams need their next
blocks at different steps. A block's samples are played in shuffled order.

C belongs to the run: ranks and workers only divide positions among them, and with C = the global batch size one of them plays a
stream alone. Any position's sample is computed from nothing but block sizes and keys, so a worker that serves few positions
pays for few.

A mixture gives each of its C streams to one corpus for the whole run, in proportion to the corpora's shares.

With k repeats (repeated augmentation, Hoffer et al. 2020, arXiv 1901.09335) 2 k positions show two neighbours of the order
above in turns, k times each: see `split_repeats`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.keyed_random import Permutation, Purpose, derive_key, permutation, random_bits

Int64s = NDArray[np.int64]
ORDER_VERSION = 3  # version of the law below; a run never resumes under another
KEPT_SHUFFLES = 4096


@dataclass(frozen=True)
class Located:
    """Locates the samples of n positions: arrays of length n."""

    corpus: Int64s
    epoch: Int64s  # epoch of its corpus
    block: Int64s
    slot: Int64s  # slot of the sample in the block, in the file's order
    draw: Int64s  # number of the sample's appearance in the epoch: 0 where nothing is repeated


class CorpusOrder:
    """Computes the order of one corpus under one seed.

    Args:
        block_samples: samples in each block of the index.
        seed: seed of this corpus in this run.
        num_streams: C; at most the number of samples is used.
    """

    def __init__(self, block_samples: NDArray[np.integer], *, seed: int, num_streams: int) -> None:
        self.block_samples = block_samples
        self.num_blocks = len(block_samples)
        self.num_samples = int(block_samples.sum(dtype=np.int64))
        self.num_streams = max(1, min(num_streams, self.num_samples))
        self.seed = seed
        # Nearly all blocks are full, so an epoch is planned from the few that are not: a shard's last ones.
        self.full_block = int(block_samples.max())
        self.short_blocks = np.flatnonzero(block_samples != self.full_block)
        # At most two epochs are in use at once: a batch may straddle a boundary, and so may what is read ahead.
        self._epoch = lru_cache(maxsize=3)(lambda epoch: _Epoch(self, epoch))

    def __reduce__(self) -> tuple[object, ...]:
        # Plans are not sent to a worker process; it computes them again.
        return _restore_corpus_order, (self.block_samples, self.seed, self.num_streams)

    def locate(self, positions: Int64s) -> tuple[Int64s, Int64s, Int64s]:
        """Return epochs, blocks and slots at these positions (0 is the first sample of the first epoch)."""
        epochs = positions // self.num_samples
        blocks, slots = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            blocks[chosen], slots[chosen] = self._epoch(int(epoch)).locate(positions[chosen] % self.num_samples)
        return epochs, blocks, slots


def _restore_corpus_order(block_samples: NDArray[np.integer], seed: int, num_streams: int) -> CorpusOrder:
    return CorpusOrder(block_samples, seed=seed, num_streams=num_streams)


class _Epoch:
    """Computes one epoch of a corpus."""

    def __init__(self, order: CorpusOrder, epoch: int) -> None:
        self._order = order
        self._blocks = Permutation(derive_key(order.seed, Purpose.BLOCKS_OF_EPOCH, epoch), order.num_blocks)
        self._phase_key = derive_key(order.seed, Purpose.STREAM_PHASE, epoch)
        # For short blocks, by their index in the line: where each begins, counted in blocks and in samples.
        line_index = self._blocks.inverse(order.short_blocks)
        sorting = np.argsort(line_index)
        self._short_index = line_index[sorting]
        self._short_samples = np.asarray(order.block_samples[order.short_blocks], np.int64)[sorting]
        missing = order.full_block - self._short_samples
        self._short_start = self._short_index * order.full_block - (np.cumsum(missing) - missing)
        self._shuffle = lru_cache(maxsize=KEPT_SHUFFLES)(
            lambda block: permutation(
                derive_key(order.seed, Purpose.INSIDE_BLOCK, epoch, block), int(order.block_samples[block])
            )
        )

    def locate(self, positions: Int64s) -> tuple[Int64s, Int64s]:
        """Return blocks and slots at positions of this epoch."""
        num_streams = self._order.num_streams
        least, more = divmod(self._order.num_samples, num_streams)
        turn, stream = np.divmod(positions, num_streams)
        start = stream * least + np.minimum(stream, more)
        length = least + (stream < more)
        phase = random_bits(self._phase_key, stream) % np.minimum(length, self._order.full_block).astype(np.uint64)
        index, inside = self._find_in_line(start + (turn + phase.astype(np.int64)) % length)
        blocks = self._blocks(index)
        slots = [self._shuffle(block)[i] for block, i in zip(blocks.tolist(), inside.tolist(), strict=True)]
        return blocks, np.array(slots, np.int64)

    def _find_in_line(self, samples: Int64s) -> tuple[Int64s, Int64s]:
        """Return which block of the line holds each of these samples of the line, and the offset in it."""
        full = self._order.full_block
        if not len(self._short_index):
            return np.divmod(samples, full)
        short = np.searchsorted(self._short_start, samples, side="right") - 1  # the last short block that begins before
        known = np.maximum(short, 0)
        beyond = samples - self._short_start[known] - self._short_samples[known]  # below 0: inside it
        index = np.where(beyond < 0, self._short_index[known], self._short_index[known] + 1 + beyond // full)
        inside = np.where(beyond < 0, beyond + self._short_samples[known], beyond % full)
        return np.where(short < 0, samples // full, index), np.where(short < 0, samples % full, inside)


class RunOrder:
    """Computes the order of a run over one corpus or a mixture of several.

    Each of C streams belongs to one corpus. A corpus that has n of them fills n of every C consecutive positions, and
    sees its own samples in the order that it would have alone with n streams: every one once in each of its epochs.

    Args:
        block_samples: block sizes of each corpus.
        weights: weight of each corpus in the mixture; their sum does not matter.
        seed: the run's.
        num_streams: C.
        repeats: k, appearances of a sample in an epoch.

    Raises:
        ConfigError: so many streams cannot give every corpus one.
    """

    def __init__(
        self,
        block_samples: Sequence[NDArray[np.integer]],
        *,
        weights: Sequence[float],
        seed: int,
        num_streams: int,
        repeats: int = 1,
    ) -> None:
        self.repeats = repeats
        self.seed = seed
        self.num_streams = num_streams
        self.streams_of = share_streams(weights, num_streams)
        slots = permutation(derive_key(seed, Purpose.MIXTURE), num_streams)
        self._corpus = np.empty(num_streams, np.int64)  # corpus of each slot
        self._corpus[slots] = np.repeat(np.arange(len(weights)), self.streams_of)
        self._turn = np.empty(num_streams, np.int64)  # turn of each slot among its corpus's
        for corpus, count in enumerate(self.streams_of):
            self._turn[self._corpus == corpus] = np.arange(count)
        self._orders = [
            CorpusOrder(samples, seed=seed if corpus == 0 else derive_key(seed, Purpose.MIXTURE, corpus), num_streams=count)
            for corpus, (samples, count) in enumerate(zip(block_samples, self.streams_of, strict=True))
        ]

    def locate(self, positions: Int64s) -> Located:
        """Find the samples at these positions of the run (0 is the first image of all)."""
        positions, draws = split_repeats(np.asarray(positions, np.int64), repeats=self.repeats)
        rows, slots = np.divmod(positions, self.num_streams)
        corpora = self._corpus[slots]
        epochs, blocks, found_slots = (np.empty_like(positions) for _ in range(3))
        for corpus in np.unique(corpora).tolist():
            chosen = corpora == corpus
            own = rows[chosen] * self.streams_of[corpus] + self._turn[slots[chosen]]
            epochs[chosen], blocks[chosen], found_slots[chosen] = self._orders[corpus].locate(own)
        return Located(corpus=corpora, epoch=epochs, block=blocks, slot=found_slots, draw=draws)


def split_repeats(positions: Int64s, *, repeats: int) -> tuple[Int64s, Int64s]:
    """Positions without repeats, and the number of the appearance there, below `repeats`.

    Of each 2 k positions the even ones show one sample and the odd ones the next. Copies are then near each other, in one
    batch but for two samples at its borders; and positions 2 i and 2 i + 1, which MixUp pairs, are never copies of each other.
    """
    pairs, inside = np.divmod(positions, 2 * repeats)
    return 2 * pairs + inside % 2, inside // 2


def share_streams(weights: Sequence[float], num_streams: int) -> list[int]:
    """Return whole numbers in proportion to weights, by largest remainder (Hamilton's method), that add up to `num_streams`.

    Raises:
        ConfigError: a corpus would get none.
    """
    exact = np.asarray(weights, np.float64) / np.sum(weights) * num_streams
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: num_streams - counts.sum()]] += 1
    if not counts.all():
        raise ConfigError(
            f"data.train: corpus number {int(np.argmin(counts)) + 1} has weight {weights[int(np.argmin(counts))]} of "
            f"{sum(weights):g}, less than one image in {num_streams} (the global batch, or data.num_streams); raise "
            "its weight or that number"
        )
    return counts.tolist()
