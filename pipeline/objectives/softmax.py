"""Compute the cross-entropy over classes of which an image has one: ImageNet-1k."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from pipeline.functional.losses import softmax_cross_entropy
from pipeline.objectives.one_label import OneLabelSection


class Softmax(OneLabelSection):
    """Configures the cross-entropy against a distribution over classes, for classes that exclude one another (ImageNet-1k)."""

    name: Literal["softmax"] = "softmax"

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        return softmax_cross_entropy(logits, targets)
