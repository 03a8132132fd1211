"""Accuracy during training, of the images as they were augmented."""

from __future__ import annotations

from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy


def top1(num_classes: int) -> dict[str, Metric]:
    """Part of the images whose label has the largest logit."""
    return {"train/accuracy": MulticlassAccuracy(num_classes=num_classes, average="micro", validate_args=False)}
