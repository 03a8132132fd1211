"""Positions to pixels: each worker fills its own slots of every batch, wherever the run starts."""

from __future__ import annotations

import functools
import itertools
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict

import numpy as np
import torch
import xxhash
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.data.augment import EvalTransform, TrainTransform
from pipeline.data.corpus import Corpus, Mixture
from pipeline.data.counter import derive_key
from pipeline.data.decode import UnreadableImage, decode_image
from pipeline.data.index import ShardIndex
from pipeline.data.order import Int64s, Located, RunOrder
from pipeline.data.reader import BlockReader, RawSample
from pipeline.data.remote import RemoteOptions, Retry
from pipeline.errors import DataError
from pipeline.interruption import SIGNALS

DIGEST_MODULUS = 2**52  # exact in a float64 too
BLOCKS_AHEAD = 4  # read beforehand by an evaluation


class Unreadable(NamedTuple):
    """One image that could not be decoded, at the position it was met."""

    position: int
    key: str
    shard: str
    reason: str


class Batch(TypedDict):
    """One rank's part of one micro-batch."""

    images: Tensor  # (B, 3, S, S) uint8
    labels: Tensor  # (B,) int64
    sample_ids: Tensor  # (B,) int64: number of the sample in the index
    positions: Tensor  # (B,) int64: place in the run's order
    unreadable: list[Unreadable]
    retries: list[Retry]  # requests to a store that failed and were made again
    wait_s: float  # how long the training process waited for it
    digest: int  # sum over the images of a hash of (position, sample id, pixels), modulo 2**52


@dataclass(frozen=True)
class Division:
    """How positions are divided: optimizer step s holds positions [s * B, (s + 1) * B).

    A step's positions are cut into `world_size` runs of neighbours, one a rank; each of those into
    `accumulation_steps` micro-batches; each of those into one run a worker.
    """

    global_batch_size: int
    rank: int
    world_size: int
    accumulation_steps: int

    @property
    def micro_batch_size(self) -> int:
        return self.global_batch_size // (self.world_size * self.accumulation_steps)

    def positions(self, *, step: int, micro_step: int) -> Int64s:
        """This rank's positions of one micro-batch."""
        first = step * self.global_batch_size + self.rank * (self.global_batch_size // self.world_size)
        return first + micro_step * self.micro_batch_size + np.arange(self.micro_batch_size, dtype=np.int64)


@dataclass(frozen=True)
class Used:
    """The sample that fills a position, and what was unreadable on the way to it."""

    sample: RawSample
    slot: int
    unreadable: list[Unreadable]


def use_first_readable(
    reader: BlockReader, block: int, slot: int, *, position: int, decode: Callable[[RawSample, int], None]
) -> Used:
    """Decode a block's sample at `slot`, or where that cannot be decoded the next one of the block that can.

    The replacement depends on the block alone, so every rank, worker and resumed run takes the same one.

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
            return Used(sample, used, unreadable)
    raise DataError(
        f"{reader.index.describe_block(block)}: none of its {len(samples)} images can be decoded "
        f"(first: {unreadable[0].key!r}: {unreadable[0].reason})"
    )


class TrainStream(IterableDataset[Batch]):
    """Endless parts of batches from `start_step` on: worker w of W yields its slots of each micro-batch in turn.

    `DataLoader` hands the parts over in worker order, and `BatchLoader` joins W of them to a micro-batch.

    Args:
        mixture: what is trained on.
        order: of the run.
        division: this rank's part of it.
        transform: bytes to pixels.
        num_classes: of the model; a label beyond is an error.
        start_step: the first optimizer step served.
        read_ahead: micro-batches whose blocks are asked for before they are needed.
        remote: how to read shards behind a URL.
    """

    def __init__(
        self, *, mixture: Mixture, order: RunOrder, division: Division, transform: TrainTransform, num_classes: int,
        start_step: int, read_ahead: int = 8, remote: RemoteOptions | None = None,
    ) -> None:  # fmt: skip
        self.mixture = mixture
        self.order = order
        self.division = division
        self.transform = transform
        self.num_classes = num_classes
        self.start_step = start_step
        self.read_ahead = read_ahead
        self.remote = remote or RemoteOptions()

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        readers = self._open_readers(num_workers)
        window: deque[tuple[Int64s, Located]] = deque()
        for positions in self._positions(worker, num_workers):
            located = self.order.locate(positions)
            for corpus, block in zip(located.corpus.tolist(), located.block.tolist(), strict=True):
                readers[corpus].start(block)
            window.append((positions, located))
            if len(window) > self.read_ahead:
                yield self._fill(readers, *window.popleft())

    def _positions(self, worker: int, num_workers: int) -> Iterator[Int64s]:
        for step in itertools.count(self.start_step):
            for micro_step in range(self.division.accumulation_steps):
                yield np.array_split(self.division.positions(step=step, micro_step=micro_step), num_workers)[worker]

    def _open_readers(self, num_workers: int) -> list[BlockReader]:
        """One a corpus, each with room for the blocks that all streams of this worker play or will play soon."""
        share = -(-self.division.micro_batch_size // num_workers)
        slots = share * self.division.accumulation_steps
        streams = slots * max(1, self.order.num_streams // self.division.global_batch_size)
        # A stream plays one block at a time; twice that rides out the ends of epochs.
        capacity = 2 * streams + share * self.read_ahead + 2
        return [BlockReader(corpus.index, capacity=capacity, remote=self.remote) for corpus in self.mixture.corpora]

    def _fill(self, readers: list[BlockReader], positions: Int64s, located: Located) -> Batch:
        size = self.transform.image_size
        images = torch.empty((len(positions), 3, size, size), dtype=torch.uint8)
        labels = torch.empty(len(positions), dtype=torch.int64)
        sample_ids = torch.empty(len(positions), dtype=torch.int64)
        unreadable: list[Unreadable] = []
        digest = 0
        for i, position in enumerate(positions.tolist()):
            corpus, block = int(located.corpus[i]), int(located.block[i])
            first = self.mixture.first_sample[corpus] + int(self.mixture.corpora[corpus].index.first_sample[block])
            render = functools.partial(self._render, epoch=int(located.epoch[i]), first=first, out=images[i])
            used = use_first_readable(readers[corpus], block, int(located.slot[i]), position=position, decode=render)
            labels[i] = self._checked_label(used.sample, self.mixture.corpora[corpus])
            sample_ids[i] = first + used.slot
            unreadable += used.unreadable
            digest += derive_key(position, first + used.slot, xxhash.xxh3_64_intdigest(images[i].numpy().data))
        return Batch(
            images=images,
            labels=labels,
            sample_ids=sample_ids,
            positions=torch.from_numpy(positions),
            unreadable=unreadable,
            retries=[retry for reader in readers for retry in reader.take_retries()],
            wait_s=0.0,
            digest=digest % DIGEST_MODULUS,
        )

    def _render(self, sample: RawSample, slot: int, *, epoch: int, first: int, out: Tensor) -> None:
        self.transform(sample.image, seed=self.order.seed, epoch=epoch, sample_id=first + slot, out=out)

    def _checked_label(self, sample: RawSample, corpus: Corpus) -> int:
        label = corpus.first_class + sample.label
        if not 0 <= label < self.num_classes:  # a GPU would stop without a word on which sample
            raise DataError(
                f"{corpus.index.folder}/{sample.shard}: sample {sample.key!r} has class {label}, but model.num_classes={self.num_classes} "
                f"(classes count from 0); raise it, or make shards with these classes alone"
            )
        return label


class BatchLoader:
    """Joins the workers' parts to whole micro-batches. Iterating starts at `start_step` again."""

    def __init__(self, stream: TrainStream, *, num_workers: int, prefetch: int, pin_memory: bool) -> None:
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self._loader = DataLoader(
            stream,
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=prefetch if num_workers else None,
            # Forking a process that runs gloo's, NCCL's or OpenMP's threads can deadlock.
            multiprocessing_context="spawn" if num_workers else None,
            worker_init_fn=_start_worker,
        )

    def __iter__(self) -> Iterator[Batch]:
        parts = iter(self._loader)
        while True:
            start = time.perf_counter()
            batch = join_parts([next(parts) for _ in range(max(1, self.num_workers))])
            if self.pin_memory:  # after joining: joined pinned parts would be unpinned again
                batch["images"], batch["labels"] = batch["images"].pin_memory(), batch["labels"].pin_memory()
            batch["wait_s"] = time.perf_counter() - start
            yield batch


def _start_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    # A scheduler may signal every process of a job. What to do is the ranks' business: they still need their batches.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def join_parts(parts: list[Batch]) -> Batch:
    """One batch from consecutive parts."""
    if len(parts) == 1:
        return parts[0]
    return Batch(
        images=torch.cat([part["images"] for part in parts]),
        labels=torch.cat([part["labels"] for part in parts]),
        sample_ids=torch.cat([part["sample_ids"] for part in parts]),
        positions=torch.cat([part["positions"] for part in parts]),
        unreadable=[item for part in parts for item in part["unreadable"]],
        retries=[item for part in parts for item in part["retries"]],
        wait_s=0.0,
        digest=sum(part["digest"] for part in parts) % DIGEST_MODULUS,
    )


@dataclass(frozen=True)
class EvalImages:
    """A chunk of a downstream set."""

    images: Tensor  # (B, 3, S, S) uint8
    labels: Tensor  # (B,) int64
    unreadable: list[Unreadable] = field(default_factory=list)


class EvalStream(IterableDataset[EvalImages]):
    """Every sample of a downstream set once, in the index's order, a block at a time. No replacements: it counts."""

    def __init__(self, *, index: ShardIndex, transform: EvalTransform, remote: RemoteOptions | None = None) -> None:
        self.index = index
        self.transform = transform
        self.remote = remote

    def __iter__(self) -> Iterator[EvalImages]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        reader = BlockReader(self.index, capacity=1, remote=self.remote)
        blocks = range(worker, self.index.num_blocks, num_workers)
        for number, block in enumerate(blocks):
            for ahead in blocks[number : number + 1 + BLOCKS_AHEAD]:
                reader.start(ahead)
            yield self._fill(reader, block)

    def _fill(self, reader: BlockReader, block: int) -> EvalImages:
        images: list[Tensor] = []
        labels: list[int] = []
        unreadable: list[Unreadable] = []
        first = int(self.index.first_sample[block])
        for slot, sample in enumerate(reader.read(block)):
            try:
                images.append(self.transform(decode_image(sample.image)))
                labels.append(sample.label)
            except UnreadableImage as error:
                unreadable.append(Unreadable(position=first + slot, key=sample.key, shard=sample.shard, reason=str(error)))
        size = self.transform.image_size
        stacked = torch.stack(images) if images else torch.empty((0, 3, size, size), dtype=torch.uint8)
        return EvalImages(images=stacked, labels=torch.tensor(labels, dtype=torch.int64), unreadable=unreadable)
