"""Compute the binary cross-entropy of each class: for ImageNet-21k and JFT, whose classes overlap."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from pipeline.functional.losses import Reduction, sigmoid_cross_entropy
from pipeline.objectives.base import Probabilities
from pipeline.objectives.one_label import OneLabelSection


class Sigmoid(OneLabelSection):
    """Configures the binary cross-entropy summed over the classes, for classes that overlap (ImageNet-21k, JFT)."""

    name: Literal["sigmoid"] = "sigmoid"
    reduction: Reduction = Field(
        default="sum", description="how the classes' losses are joined: sum as the paper's authors; mean as DeiT III"
    )

    head_bias: float = Field(
        default=-10.0, description="what the classifier's biases begin at (vision_transformer issue #34); AugReg on 1k: -6.9"
    )

    probabilities: ClassVar[Probabilities | None] = "sigmoid"

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        return sigmoid_cross_entropy(logits, targets, reduction=self.reduction)
