"""Compute frozen features of a downstream set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.images.crop import EvalTransform
from pipeline.data.shards.index import ShardIndex
from pipeline.evaluation.clock import Clock
from pipeline.evaluation.feature_kinds import REPRESENTATION, FeatureKind
from pipeline.evaluation.reading import Reading, read_batches
from pipeline.models.base import Backbone
from pipeline.run.weights import Weights


@dataclass(frozen=True)
class Features:
    """Holds one split: every readable image once, in the index's order."""

    values: Tensor  # (N, D) fp32
    labels: Tensor  # (N,) int64
    num_unreadable: int

    def to(self, device: torch.device) -> Features:
        return Features(values=self.values.to(device), labels=self.labels.to(device), num_unreadable=self.num_unreadable)


@dataclass(frozen=True)
class PartialFeatures:
    """Holds the readable images of some blocks of a split. Arrays are numpy's: processes send them to each other."""

    values: NDArray[np.float32]  # (N, D)
    labels: NDArray[np.int64]  # (N,)
    positions: NDArray[np.int64]  # (N,) in the index's order
    num_unreadable: int


@torch.no_grad()
def compute_partial(
    model: Backbone,
    index: ShardIndex,
    *,
    blocks: NDArray[np.int64] | None,
    transform: EvalTransform,
    reading: Reading,
    description: str,
    kind: FeatureKind = REPRESENTATION,
    clock: Clock | None = None,
) -> PartialFeatures:
    """Run a frozen model over some blocks of a split. Features are fp32. They do not depend on the number of workers.

    Args:
        blocks: numbers of the blocks, ascending; None: all.
        clock: counts the time until images are there.
    """
    values, labels, positions, unreadable = list[Tensor](), list[Tensor](), list[Tensor](), 0
    batches = read_batches(index, transform=transform, labels="one", reading=reading, description=description, blocks=blocks)
    for batch in (clock or Clock()).waiting(batches, "images"):
        unreadable += batch.num_unreadable
        with reading.autocast():
            values.append(kind.compute(model, batch.images).float().cpu())
        labels.append(batch.labels.cpu())
        positions.append(batch.positions)
    return PartialFeatures(
        torch.cat(values).numpy(), torch.cat(labels).numpy(), torch.cat(positions).numpy(), num_unreadable=unreadable
    )


@dataclass(frozen=True)
class FeatureShare:
    """Computes the features of some blocks of a split, in one of the processes that share it."""

    index: ShardIndex
    transform: EvalTransform
    kind: FeatureKind
    description: str

    def __call__(
        self, weights: Weights, *, blocks: NDArray[np.int64] | None, reading: Reading, clock: Clock
    ) -> PartialFeatures:
        return compute_partial(
            weights.model,
            self.index,
            blocks=blocks,
            transform=self.transform,
            reading=reading,
            description=self.description,
            kind=self.kind,
            clock=clock,
        )


def join(parts: Sequence[PartialFeatures], *, num_samples: int) -> Features:
    """Put parts together, in the index's order.

    Args:
        num_samples: of the split. Every one is in exactly one part, or counted there as unreadable.
    """
    positions = np.concatenate([part.positions for part in parts])
    order = np.argsort(positions)
    unreadable = sum(part.num_unreadable for part in parts)
    assert len(np.unique(positions)) == len(positions) == num_samples - unreadable, "an image is missing, or there twice"
    if len(parts) == 1:  # without a copy: of ImageNet's images it would take gigabytes
        return Features(torch.from_numpy(parts[0].values), torch.from_numpy(parts[0].labels), num_unreadable=unreadable)
    return Features(
        values=torch.from_numpy(np.concatenate([part.values for part in parts])[order]),
        labels=torch.from_numpy(np.concatenate([part.labels for part in parts])[order]),
        num_unreadable=unreadable,
    )


def extract_features(
    model: Backbone,
    index: ShardIndex,
    *,
    transform: EvalTransform,
    reading: Reading,
    description: str,
    kind: FeatureKind = REPRESENTATION,
    clock: Clock | None = None,
) -> Features:
    """Compute the features of a split in this process. They are fp32, on CPU."""
    whole = compute_partial(
        model, index, blocks=None, transform=transform, reading=reading, description=description, kind=kind, clock=clock
    )
    return join([whole], num_samples=index.num_samples)
