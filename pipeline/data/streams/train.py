"""Turn positions into pixels: each worker fills its own slots of every batch, wherever the run starts."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import xxhash
from torch import Tensor

from pipeline.data.images.crop import TrainTransform
from pipeline.data.images.decode import UnreadableImage
from pipeline.data.order import Int64s, Located, RunOrder
from pipeline.data.shards.reader import BlockReader, RawSample
from pipeline.data.shards.remote import RemoteOptions, Retry
from pipeline.data.streams.mixture import Corpus, Mixture
from pipeline.errors import DataError
from pipeline.keyed_random import derive_key

LabelKind = Literal["one", "several", "none"]  # what is read of an image: see `pipeline.objectives.base.LabelKind`
DIGEST_MODULUS = 2**52  # exact in a float64 too


class Unreadable(NamedTuple):
    """Describes one image that could not be decoded, at the position where it was met."""

    position: int
    key: str
    shard: str
    reason: str


@dataclass(frozen=True)
class WorkerShare:
    """Holds what one worker has put into its slots of a micro-batch, except its pixels."""

    labels: Int64s  # of its images one after the other
    label_ends: Int64s  # of each image, where its labels end: images have one label, several or none
    sample_ids: Int64s  # numbers of the samples in the mixture
    positions: Int64s
    unreadable: list[Unreadable]
    retries: list[Retry]  # requests to a store that failed and were retried
    digest: int  # sum over the images of a hash of (position, sample id, pixels), modulo 2**52


@dataclass(frozen=True)
class Division:
    """Says how positions are divided: optimizer step s holds positions [s * B, (s + 1) * B).

    A step's positions are cut into `world_size` runs of neighbours, one a rank; each of those into
    `accumulation_steps` micro-batches; each of those into one run a worker. Parts of a cut differ by one at most, or by
    `together`: a micro-batch holds whole groups of so many neighbours.
    """

    global_batch_size: int
    rank: int
    world_size: int
    accumulation_steps: int
    together: int = 1

    @property
    def micro_batch_size(self) -> int:
        """Return the images of the largest micro-batch of any rank."""
        return largest_micro_batch(
            self.global_batch_size,
            num_ranks=self.world_size,
            accumulation_steps=self.accumulation_steps,
            together=self.together,
        )

    @property
    def mean_micro_batch_size(self) -> float:
        """Return the images of a micro-batch, averaged over all ranks."""
        return self.global_batch_size / (self.world_size * self.accumulation_steps)

    def positions(self, *, step: int, micro_step: int) -> Int64s:
        """This rank's positions of one micro-batch."""
        groups = self.global_batch_size // self.together
        mine = share_of(groups, part=self.rank, num_parts=self.world_size)
        some = share_of(mine.stop - mine.start, part=micro_step, num_parts=self.accumulation_steps)
        first = step * self.global_batch_size + mine.start * self.together
        return np.arange(first + some.start * self.together, first + some.stop * self.together, dtype=np.int64)

    def worker_slots(self, *, start_step: int, worker: int, num_workers: int) -> Iterator[tuple[Int64s, slice]]:
        """Yield a worker's positions in one micro-batch after the other, and their slots in it."""
        for step in itertools.count(start_step):
            for micro_step in range(self.accumulation_steps):
                positions = self.positions(step=step, micro_step=micro_step)
                slots = share_of(len(positions), part=worker, num_parts=num_workers)
                yield positions[slots], slots


def largest_micro_batch(global_batch_size: int, *, num_ranks: int, accumulation_steps: int, together: int = 1) -> int:
    """Images of the largest micro-batch of any rank."""
    return together * -(-global_batch_size // (together * num_ranks * accumulation_steps))


def share_of(length: int, *, part: int, num_parts: int) -> slice:
    """Return one of `num_parts` runs of neighbours in [0, length), which differ by one at most."""
    return slice(part * length // num_parts, (part + 1) * length // num_parts)


@dataclass(frozen=True)
class DecodedSample:
    """Holds the sample that fills a position, and the unreadable ones before it."""

    sample: RawSample
    slot: int
    unreadable: list[Unreadable]


def decode_or_substitute(
    reader: BlockReader, block: int, slot: int, *, position: int, decode: Callable[[RawSample, int], None]
) -> DecodedSample:
    """Decode a block's sample at `slot`, or, where that cannot be decoded, the next one of the block that can.

    The substitute depends on the block alone, so every rank, worker and resumed run takes the same one.

    Args:
        decode: called with a sample and its slot; raises `UnreadableImage`.

    Raises:
        DataError: nothing in the whole block can be decoded.
    """
    samples = reader.read(block)
    unreadable: list[Unreadable] = []
    for offset in range(len(samples)):
        used = (slot + offset) % len(samples)
        sample = samples[used]
        try:
            decode(sample, used)
        except UnreadableImage as error:
            unreadable.append(Unreadable(position=position, key=sample.key, shard=sample.shard, reason=str(error)))
        else:
            return DecodedSample(sample, used, unreadable)
    raise DataError(
        f"{reader.index.describe_block(block)}: none of its {len(samples)} images can be decoded "
        f"(first: {unreadable[0].key!r}: {unreadable[0].reason})"
    )


class TrainStream:
    """Yields endless parts of micro-batches from `start_step` on: worker w of W fills its slots of each in turn.

    Args:
        mixture: what is trained on.
        order: order of the run.
        division: this rank's part of it.
        transform: bytes to pixels.
        num_classes: classes of the model; a larger label is an error.
        labels: labels of an image that the objective needs; with `none` they are not even read.
        start_step: the first optimizer step served.
        read_ahead: micro-batches whose blocks are requested before they are needed.
        remote: how to read shards behind a URL.
    """

    def __init__(
        self,
        *,
        mixture: Mixture,
        order: RunOrder,
        division: Division,
        transform: TrainTransform,
        num_classes: int,
        start_step: int,
        labels: LabelKind = "one",
        read_ahead: int = 8,
        remote: RemoteOptions | None = None,
    ) -> None:
        self.mixture = mixture
        self.order = order
        self.division = division
        self.transform = transform
        self.num_classes = num_classes
        self.labels = labels
        self.start_step = start_step
        self.read_ahead = read_ahead
        self.remote = remote or RemoteOptions()

    def parts(self, images: Tensor, *, worker: int, num_workers: int) -> Iterator[WorkerShare]:
        """Fill this worker's slots of micro-batch n in `images[n % R]`, for n = 0, 1, ..., and yield a part when one is full.

        Args:
            images: (R, B, 3, H, W) uint8, in memory that all workers share. Whoever iterates sees to it that a
                micro-batch is no longer needed when the one R later is asked for.
        """
        readers = self._open_readers(num_workers)
        window: deque[tuple[Int64s, Located, slice]] = deque()
        number = 0
        for positions, slots in self.division.worker_slots(start_step=self.start_step, worker=worker, num_workers=num_workers):
            located = self.order.locate(positions)
            for corpus, block in zip(located.corpus.tolist(), located.block.tolist(), strict=True):
                readers[corpus].start(block)
            window.append((positions, located, slots))
            if len(window) > self.read_ahead:
                due, found, slots = window.popleft()  # the present micro-batch's
                yield self._fill(readers, due, found, slots=images[number % len(images), slots])
                number += 1

    def _open_readers(self, num_workers: int) -> list[BlockReader]:
        """Open one reader a corpus, each with room for the blocks that all streams of this worker play."""
        share = -(-self.division.micro_batch_size // num_workers)
        if self.order.repeats > 1:  # fewer samples a step, by turns of other streams; a share may begin and end between copies
            share += 2 * self.order.repeats
        slots = share * self.division.accumulation_steps
        streams = slots * max(1, self.order.num_streams // self.division.global_batch_size)
        # A stream plays one block at a time. Twice that covers the ends of epochs.
        return [
            BlockReader(corpus.index, capacity=2 * streams + 2, remote=self.remote, plays=self.order.repeats)
            for corpus in self.mixture.corpora
        ]

    def _fill(self, readers: list[BlockReader], positions: Int64s, located: Located, *, slots: Tensor) -> WorkerShare:
        labels: list[int] = []
        label_ends, sample_ids = np.empty_like(positions), np.empty_like(positions)
        unreadable: list[Unreadable] = []
        digest = 0
        for i, position in enumerate(positions.tolist()):
            corpus, block = int(located.corpus[i]), int(located.block[i])
            first = self.mixture.first_sample[corpus] + int(self.mixture.corpora[corpus].index.first_sample[block])
            render = functools.partial(
                self._render, epoch=int(located.epoch[i]), first=first, draw=int(located.draw[i]), out=slots[i]
            )
            used = decode_or_substitute(readers[corpus], block, int(located.slot[i]), position=position, decode=render)
            labels += self._checked_labels(used.sample, self.mixture.corpora[corpus])
            label_ends[i] = len(labels)
            sample_ids[i] = first + used.slot
            unreadable += used.unreadable
            digest += derive_key(position, first + used.slot, xxhash.xxh3_64_intdigest(slots[i].numpy().data))
        return WorkerShare(
            labels=np.array(labels, np.int64),
            label_ends=label_ends,
            sample_ids=sample_ids,
            positions=positions,
            unreadable=unreadable,
            retries=[retry for reader in readers for retry in reader.take_retries()],
            digest=digest % DIGEST_MODULUS,
        )

    def _render(self, sample: RawSample, slot: int, *, epoch: int, first: int, draw: int, out: Tensor) -> None:
        self.transform(sample.image, seed=self.order.seed, epoch=epoch, sample_id=first + slot, draw=draw, out=out)

    def _checked_labels(self, sample: RawSample, corpus: Corpus) -> list[int]:
        if self.labels == "none":
            return []
        stored = (sample.label,) if self.labels == "one" else sample.labels
        if any(label < 0 for label in stored):  # first_class could make a class of another corpus of it
            raise DataError(
                f"{corpus.index.folder}/{sample.shard}: sample {sample.key!r} has class {min(stored)}; classes count from 0: "
                "make shards with others"
            )
        labels = [corpus.first_class + label for label in stored]
        if labels and max(labels) >= self.num_classes:  # a GPU would stop without a word on which sample
            raise DataError(
                f"{corpus.index.folder}/{sample.shard}: sample {sample.key!r} has class {max(labels)}, but "
                f"model.num_classes={self.num_classes} (classes count from 0); raise it, or make shards with these classes "
                "alone"
            )
        return labels
