"""The loss of objectives of one label an image."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor

from pipeline.functional.losses import one_hot_targets
from pipeline.objectives.base import Loss


def one_label_loss(cross_entropy: Callable[[Tensor, Tensor], Tensor], *, num_classes: int, label_smoothing: float) -> Loss:
    """The loss of logits (B, C) and labels (B,), from one of logits and targets (B, C)."""
    targets = functools.partial(one_hot_targets, num_classes=num_classes, label_smoothing=label_smoothing)
    return lambda logits, labels: cross_entropy(logits, targets(labels))
