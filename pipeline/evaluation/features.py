"""Compute frozen features of a downstream set: the representation that the classifier would read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.console.progress import progress
from pipeline.data.images.crop import EvalTransform
from pipeline.data.shards.index import ShardIndex
from pipeline.data.shards.remote import RemoteOptions
from pipeline.data.streams.evaluation import EvalStream
from pipeline.data.workers import explained, start_worker, started
from pipeline.distributed.precision import EvaluationPrecision
from pipeline.models.base import Backbone


@dataclass(frozen=True)
class Features:
    """Holds one split: every readable image once, in the index's order."""

    values: Tensor  # (N, D) fp32
    labels: Tensor  # (N,) int64
    num_unreadable: int

    def to(self, device: torch.device) -> Features:
        return Features(values=self.values.to(device), labels=self.labels.to(device), num_unreadable=self.num_unreadable)


@torch.no_grad()
def extract_features(
    model: Backbone,
    index: ShardIndex,
    *,
    transform: EvalTransform,
    device: torch.device,
    precision: EvaluationPrecision,
    batch_size: int,
    num_workers: int,
    description: str,
    remote: RemoteOptions | None = None,
) -> Features:
    """Run a frozen model over a split.

    The forward pass runs in fp32 or under bf16 autocast; features come back as fp32. They do not depend on the number
    of workers.
    """
    loader = DataLoader(
        EvalStream(index=index, transform=transform, remote=remote),
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context="spawn" if num_workers else None,
        worker_init_fn=start_worker,
    )
    values: list[Tensor] = []
    labels: list[Tensor] = []
    unreadable = 0
    bar = progress(total=index.num_samples, description=description, unit="image", leave=False)
    # torch reports a worker that has ended wherever this process is at that moment.
    with bar, explained(remedy="evaluation.num_workers"), started(loader) as items:
        for item in items:
            for images in torch.from_numpy(item.images).split(batch_size):
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    values.append(model.forward_representation(images.to(device)).float().cpu())
            labels.append(torch.from_numpy(item.labels))
            for lost in item.unreadable:
                print(f"[eval] unreadable image {lost.key!r} in {lost.shard} left out: {lost.reason}", flush=True)
            unreadable += len(item.unreadable)
            bar.update(len(item.labels) + len(item.unreadable))
    return Features(values=torch.cat(values), labels=torch.cat(labels), num_unreadable=unreadable)
