"""Accuracy during training, of the images as they were augmented."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy


def top1(num_classes: int) -> dict[str, Metric]:
    """Part of the images whose label has the largest logit."""
    return {"train/accuracy": MulticlassAccuracy(num_classes=num_classes, average="micro", validate_args=False)}


def hit_at_1() -> dict[str, Metric]:
    """Part of the images whose largest logit is of one of their labels."""
    return {"train/hit_at_1": HitAt1()}


def of_patches(num_levels: int) -> dict[str, Metric]:
    """Part of the corrupted patches whose colour has the largest logit."""
    return {"train/patch_accuracy": MulticlassAccuracy(num_classes=num_levels, average="micro", validate_args=False)}


class HitAt1(Metric):
    """Part of the images whose largest logit is of a class with a target; images without labels are not counted."""

    hits: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Logits and targets, both (B, C)."""
        labelled = targets.any(dim=1)
        best = predictions.argmax(dim=1, keepdim=True)
        self.hits += (targets.gather(1, best)[:, 0] > 0)[labelled].sum()
        self.total += labelled.sum()

    def compute(self) -> Tensor:
        return self.hits / self.total
