"""Read a set's images for a model, in batches on its device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.console.progress import progress
from pipeline.data.images.crop import EvalTransform
from pipeline.data.shards.index import ShardIndex
from pipeline.data.shards.remote import RemoteOptions
from pipeline.data.streams.evaluation import EvalImages, EvalStream
from pipeline.data.streams.train import LabelKind
from pipeline.data.workers import explained, start_worker, started
from pipeline.distributed.precision import EvaluationPrecision


@dataclass(frozen=True)
class Reading:
    """Says how images are read, and how a model runs over them."""

    device: torch.device
    precision: EvaluationPrecision
    batch_size: int
    num_workers: int
    remote: RemoteOptions | None = None

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass: fp32, or bf16 autocast."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


@dataclass(frozen=True)
class EvalBatch:
    """Holds images of a set and their labels, on the model's device."""

    images: Tensor  # (B, 3, H, W) uint8
    labels: Tensor  # (L,) int64, of its images one after the other
    label_ends: Tensor  # (B,) int64, of each image, where its labels end
    positions: Tensor  # (B,) int64 in the index's order, on CPU
    num_unreadable: int  # images before this batch, and after the one before, that are left out


def read_batches(
    index: ShardIndex, *, transform: EvalTransform, labels: LabelKind, reading: Reading, description: str
) -> Iterator[EvalBatch]:
    """Yield every readable image once, in the index's order, whatever the workers; report each that is unreadable."""
    loader = DataLoader(
        EvalStream(index=index, transform=transform, labels=labels, remote=reading.remote),
        batch_size=None,
        num_workers=reading.num_workers,
        multiprocessing_context="spawn" if reading.num_workers else None,
        worker_init_fn=start_worker,
    )
    bar = progress(total=index.num_samples, description=description, unit="image", leave=False)
    # torch reports a worker that has ended wherever this process is at that moment.
    with bar, explained(remedy="evaluation.num_workers"), started(loader) as items:
        for item in items:
            for lost in item.unreadable:
                print(f"[eval] unreadable image {lost.key!r} in {lost.shard} left out: {lost.reason}", flush=True)
            yield from _split(item, reading)
            bar.update(len(item.positions) + len(item.unreadable))


def _split(item: EvalImages, reading: Reading) -> Iterator[EvalBatch]:
    """Yield a chunk's images in batches; an empty one where none of the chunk's images is readable."""
    ends = item.label_ends
    for first in range(0, max(1, len(ends)), reading.batch_size):
        some = slice(first, first + reading.batch_size)
        before = int(ends[first - 1]) if first else 0
        last = int(ends[some][-1]) if len(ends[some]) else before
        yield EvalBatch(
            images=torch.from_numpy(item.images[some]).to(reading.device),
            labels=torch.from_numpy(item.labels[before:last]).to(reading.device),
            label_ends=torch.from_numpy(ends[some] - before).to(reading.device),
            positions=torch.from_numpy(item.positions[some]),
            num_unreadable=0 if first else len(item.unreadable),
        )
