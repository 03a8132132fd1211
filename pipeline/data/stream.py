"""Positions to pixels: each worker fills its own slots of every batch, wherever the run starts."""

from __future__ import annotations

import signal
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.data.augment import EvalTransform, TrainTransform
from pipeline.data.counter import derive_key
from pipeline.data.decode import UnreadableImage, decode_image
from pipeline.data.index import ShardIndex
from pipeline.data.order import Int64s, SampleOrder
from pipeline.data.reader import BlockReader, RawSample
from pipeline.errors import DataError
from pipeline.interruption import SIGNALS

DIGEST_MODULUS = 2**52  # exact in a float64 too


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
    """

    def __init__(
        self, *, index: ShardIndex, order: SampleOrder, division: Division, transform: TrainTransform, num_classes: int,
        start_step: int,
    ) -> None:  # fmt: skip
        self.index = index
        self.order = order
        self.division = division
        self.transform = transform
        self.num_classes = num_classes
        self.start_step = start_step

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        # A stream plays one block at a time; twice that rides out the ends of epochs.
        slots = -(-self.division.micro_batch_size // num_workers) * self.division.accumulation_steps
        reader = BlockReader(self.index, capacity=2 * slots + 2)
        step = self.start_step
        while True:
            for micro_step in range(self.division.accumulation_steps):
                positions = self.division.positions(step=step, micro_step=micro_step)
                yield self._fill(reader, np.array_split(positions, num_workers)[worker])
            step += 1

    def _checked_label(self, sample: RawSample) -> int:
        if not 0 <= sample.label < self.num_classes:  # a GPU would stop without a word on which sample
            raise DataError(
                f"{self.index.folder}/{sample.shard}: sample {sample.key!r} has class {sample.label}, but model.num_classes={self.num_classes} "
                f"(classes count from 0); raise it, or make shards with these classes alone"
            )
        return sample.label

    def _fill(self, reader: BlockReader, positions: Int64s) -> Batch:
        size = self.transform.image_size
        images = torch.empty((len(positions), 3, size, size), dtype=torch.uint8)
        labels = torch.empty(len(positions), dtype=torch.int64)
        sample_ids = torch.empty(len(positions), dtype=torch.int64)
        unreadable: list[Unreadable] = []
        digest = 0
        located = self.order.locate(positions)
        for i, position in enumerate(positions.tolist()):
            block, epoch = int(located.block[i]), int(located.epoch[i])
            first = int(self.index.first_sample[block])

            def decode(sample: RawSample, slot: int, *, i: int = i, epoch: int = epoch, first: int = first) -> None:
                self.transform(sample.image, seed=self.order.seed, epoch=epoch, sample_id=first + slot, out=images[i])

            used = use_first_readable(reader, block, int(located.slot[i]), position=position, decode=decode)
            labels[i] = self._checked_label(used.sample)
            sample_ids[i] = first + used.slot
            unreadable += used.unreadable
            digest += derive_key(position, first + used.slot, zlib.crc32(images[i].numpy().data))
        return Batch(
            images=images,
            labels=labels,
            sample_ids=sample_ids,
            positions=torch.from_numpy(positions),
            unreadable=unreadable,
            wait_s=0.0,
            digest=digest % DIGEST_MODULUS,
        )


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

    def __init__(self, *, index: ShardIndex, transform: EvalTransform) -> None:
        self.index = index
        self.transform = transform

    def __iter__(self) -> Iterator[EvalImages]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        reader = BlockReader(self.index, capacity=1)
        for block in range(worker, self.index.num_blocks, num_workers):
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
