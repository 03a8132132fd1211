"""Run worker processes that write decoded images straight into the batches: shared memory, nothing copied, nothing pickled.

A ring of R micro-batches lies in shared memory. Workers write their share of micro-batch n into slot n % R. Only labels, ids
and counts travel through a queue. The ring needs no locks: a worker begins a micro-batch when it is requested, at most
`prefetch` ahead, and R leaves room for those still in use.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.data.images.crop import TrainTransform
from pipeline.data.shards.remote import Retry
from pipeline.data.streams.train import DIGEST_MODULUS, Division, Unreadable, WorkerShare
from pipeline.data.workers import explained, start_worker, started
from pipeline.errors import DataError, PipelineError
from pipeline.image_size import height_and_width

MICRO_BATCHES_IN_USE = 3  # by the trainer: the one it computes, the one it fetched ahead, the one it receives


class Batch(TypedDict):
    """Holds one rank's part of one micro-batch. It is valid until the third one after it is requested."""

    images: Tensor  # (B, 3, H, W) uint8
    loss_weight: float  # of its mean loss: its images as a part of the mean micro-batch, 1 where all have as many
    labels: Tensor  # (L,) int64, of the images one after the other; (B,) where each has one
    label_ends: Tensor  # (B,) int64: where each image's labels end
    sample_ids: Tensor  # (B,) int64: number of the sample in the mixture
    positions: Tensor  # (B,) int64: position in the run's order
    unreadable: list[Unreadable]
    retries: list[Retry]
    wait_s: float  # how long the training process waited for it
    digest: int  # sum over the images of a hash of (position, sample id, pixels), modulo 2**52
    when_copied: list[Callable[[], None]]  # called before the images' memory is overwritten: waits for copies in progress


class Stream(Protocol):
    """Names what a loader plays: see `TrainStream`."""

    @property
    def division(self) -> Division: ...

    @property
    def transform(self) -> TrainTransform: ...

    def parts(self, images: Tensor, *, worker: int, num_workers: int) -> Iterator[WorkerShare]: ...


class BatchLoader:
    """Yields whole micro-batches of a stream. Each iteration starts at its `start_step` again.

    Args:
        num_workers: processes; 0 fills in this one.
        prefetch: micro-batches a worker prepares ahead.
        pin_memory: let a GPU copy straight from the ring.
    """

    def __init__(self, stream: Stream, *, num_workers: int, prefetch: int, pin_memory: bool) -> None:
        self.stream = stream
        self.num_workers = num_workers
        self.prefetch = prefetch if num_workers else 0
        self.pin_memory = pin_memory

    def __iter__(self) -> Iterator[Batch]:
        size, batch = height_and_width(self.stream.transform.image_size), self.stream.division.micro_batch_size
        shape = (self.prefetch + MICRO_BATCHES_IN_USE, batch, 3, *size)
        images = _share(shape) if self.num_workers else torch.empty(shape, dtype=torch.uint8)
        if self.pin_memory:
            _pin(images)
        try:
            yield from self._batches(images)
        finally:
            if self.pin_memory:
                _unpin(images)

    def _batches(self, images: Tensor) -> Iterator[Batch]:
        loader = DataLoader(
            _Filler(self.stream, images),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            prefetch_factor=self.prefetch or None,
            # Forking a process that runs gloo's, NCCL's or OpenMP's threads can deadlock.
            multiprocessing_context="spawn" if self.num_workers else None,
            worker_init_fn=start_worker,
        )
        with started(loader) as parts:
            in_use: deque[Batch] = deque()
            number = 0
            while True:
                start = time.perf_counter()
                if len(in_use) == MICRO_BATCHES_IN_USE:  # requesting the next one allows overwriting its memory
                    for wait in in_use.popleft()["when_copied"]:
                        wait()
                taken = [self._take(parts) for _ in range(max(1, self.num_workers))]
                batch = _join(taken, images[number % len(images)], division=self.stream.division)
                batch["wait_s"] = time.perf_counter() - start
                in_use.append(batch)
                number += 1
                yield batch

    def _take(self, parts: Iterator[WorkerShare | PipelineError]) -> WorkerShare:
        with explained(remedy="data.num_workers or data.prefetch"):
            part = next(parts)
        if isinstance(part, PipelineError):
            raise part
        return part


class _Filler(IterableDataset[WorkerShare | PipelineError]):
    """Runs inside `DataLoader`'s workers. It passes the parts on in worker order; an error ends them."""

    def __init__(self, stream: Stream, images: Tensor) -> None:
        self.stream = stream
        self.images = images

    def __iter__(self) -> Iterator[WorkerShare | PipelineError]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        try:
            yield from self.stream.parts(self.images, worker=worker, num_workers=num_workers)
        except PipelineError as error:  # passed as a value: `DataLoader` would wrap it into a traceback
            yield error


def _as_it_is(part: Any) -> Any:
    return part


def _join(parts: list[WorkerShare], images: Tensor, *, division: Division) -> Batch:
    num_images = sum(len(part.positions) for part in parts)
    first_label = np.cumsum([0, *(len(part.labels) for part in parts)])
    return Batch(
        images=images[:num_images],
        loss_weight=num_images / division.mean_micro_batch_size,
        labels=torch.from_numpy(np.concatenate([part.labels for part in parts])),
        label_ends=torch.from_numpy(
            np.concatenate([part.label_ends + first for part, first in zip(parts, first_label, strict=False)])
        ),
        sample_ids=torch.from_numpy(np.concatenate([part.sample_ids for part in parts])),
        positions=torch.from_numpy(np.concatenate([part.positions for part in parts])),
        unreadable=[item for part in parts for item in part.unreadable],
        retries=[item for part in parts for item in part.retries],
        wait_s=0.0,
        digest=sum(part.digest for part in parts) % DIGEST_MODULUS,
        when_copied=[],
    )


def _share(shape: tuple[int, ...]) -> Tensor:
    """Allocate shared memory for a tensor of bytes.

    Raises:
        DataError: the machine has too little of it; writing to it would end the worker without a message.
    """
    needed, state = int(np.prod(shape)), os.statvfs("/dev/shm")
    free = state.f_bavail * state.f_frsize
    if needed > free:
        raise DataError(
            f"a rank's batches take {needed / 2**20:.0f} MiB of shared memory, /dev/shm has {free / 2**20:.0f} left; give the "
            f"container more (docker --shm-size, or --ipc=host), or lower data.prefetch or trainer.micro_batch_size"
        )
    return torch.empty(shape, dtype=torch.uint8).share_memory_()


def _pin(images: Tensor) -> None:
    """Page-lock memory that exists already, so that a GPU copies from it while it computes."""
    runtime: Any = torch.cuda.cudart()
    code = runtime.cudaHostRegister(images.data_ptr(), images.nbytes, 0)
    if int(code) != 0:
        raise DataError(
            f"{images.nbytes / 2**20:.0f} MiB of batches cannot be page-locked (CUDA error {int(code)}); raise the limit on "
            "locked memory (ulimit -l), or lower data.prefetch"
        )


def _unpin(images: Tensor) -> None:
    runtime: Any = torch.cuda.cudart()
    runtime.cudaHostUnregister(images.data_ptr())
