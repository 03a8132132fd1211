"""Compute frozen features of a downstream set: the representation that the classifier would read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.data.images.crop import EvalTransform
from pipeline.data.shards.index import ShardIndex
from pipeline.evaluation.reading import Reading, read_batches
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
    model: Backbone, index: ShardIndex, *, transform: EvalTransform, reading: Reading, description: str
) -> Features:
    """Run a frozen model over a split. Features are fp32, on CPU. They do not depend on the number of workers."""
    values: list[Tensor] = []
    labels: list[Tensor] = []
    unreadable = 0
    for batch in read_batches(index, transform=transform, labels="one", reading=reading, description=description):
        unreadable += batch.num_unreadable
        with reading.autocast():
            values.append(model.forward_representation(batch.images).float().cpu())
        labels.append(batch.labels.cpu())
    return Features(values=torch.cat(values), labels=torch.cat(labels), num_unreadable=unreadable)
