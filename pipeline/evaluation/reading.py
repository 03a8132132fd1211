"""Read a set's images for a model, in batches on its device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.console.progress import progress
from pipeline.data.images.crop import EvalTransform
from pipeline.data.shards.index import ShardIndex
from pipeline.data.shards.remote import RemoteOptions
from pipeline.data.streams.evaluation import EvalImages, EvalLabels, EvalStream
from pipeline.data.streams.train import Unreadable
from pipeline.data.workers import explained, start_worker, started
from pipeline.distributed.precision import EvaluationPrecision


@dataclass(frozen=True)
class Reading:
    """Says how images are read, and how a model runs over them.

    Attributes:
        program: begins lines of the log.
        workers_setting: the setting that sets `num_workers`, for messages.
        cpu_threads: of a process that computes a part of the images on the CPU.
        shows_progress: false in such a process.
    """

    device: torch.device
    precision: EvaluationPrecision
    batch_size: int
    num_workers: int
    remote: RemoteOptions | None = None
    program: str = "eval"
    workers_setting: str = "evaluation.num_workers"
    cpu_threads: int = 1
    shows_progress: bool = True

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass: fp32, or bf16 autocast."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


@dataclass(frozen=True)
class EvalBatch:
    """Holds images of one block of a set and their labels, on the model's device."""

    block: int
    keys: list[str]  # of each image
    images: Tensor  # (B, 3, H, W) uint8
    masks: Tensor  # (B, H, W) uint8 class of each pixel; (B, 0, 0) unless they were asked for
    labels: Tensor  # (L,) int64, of its images one after the other
    label_ends: Tensor  # (B,) int64, of each image, where its labels end
    positions: Tensor  # (B,) int64 in the index's order, on CPU
    unreadable: list[Unreadable]  # images of the block that are left out; its first batch has them

    @property
    def num_unreadable(self) -> int:
        return len(self.unreadable)


def read_batches(
    index: ShardIndex,
    *,
    transform: EvalTransform,
    labels: EvalLabels,
    reading: Reading,
    description: str,
    masks: Literal["none", "needed"] = "none",
    blocks: NDArray[np.int64] | None = None,
) -> Iterator[EvalBatch]:
    """Yield every readable image once, in the index's order, whatever the workers; report each that is unreadable.

    Args:
        blocks: numbers of the blocks to read; None: all. Images of two blocks are never in one batch.
    """
    loader = DataLoader(
        EvalStream(index=index, transform=transform, labels=labels, masks=masks, blocks=blocks, remote=reading.remote),
        batch_size=None,
        num_workers=reading.num_workers,
        multiprocessing_context="spawn" if reading.num_workers else None,
        worker_init_fn=start_worker,
    )
    total = index.num_samples if blocks is None else int(index.block_samples[blocks].sum(dtype=np.int64))
    bar = progress(total=total, description=description, unit="image", leave=False, shown=reading.shows_progress)
    # torch reports a worker that has ended wherever this process is at that moment.
    with bar, explained(remedy=reading.workers_setting), started(loader) as items:
        for item in items:
            for lost in item.unreadable:
                text = f"unreadable image {lost.key!r} in {lost.shard} left out: {lost.reason}"
                print(f"[{reading.program}] {text}", flush=True)
            yield from _split(item, reading)
            bar.update(len(item.positions) + len(item.unreadable))


def _split(item: EvalImages, reading: Reading) -> Iterator[EvalBatch]:
    """Yield a block's images in batches; an empty one where none of the block's images is readable."""
    ends = item.label_ends
    for first in range(0, max(1, len(ends)), reading.batch_size):
        some = slice(first, first + reading.batch_size)
        before = int(ends[first - 1]) if first else 0
        last = int(ends[some][-1]) if len(ends[some]) else before
        yield EvalBatch(
            block=item.block,
            keys=item.keys[some],
            images=torch.from_numpy(item.images[some]).to(reading.device),
            masks=torch.from_numpy(item.masks[some]).to(reading.device),
            labels=torch.from_numpy(item.labels[before:last]).to(reading.device),
            label_ends=torch.from_numpy(ends[some] - before).to(reading.device),
            positions=torch.from_numpy(item.positions[some]),
            unreadable=[] if first else item.unreadable,
        )
