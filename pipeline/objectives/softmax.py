"""Compute the cross-entropy over classes of which an image has one: ImageNet-1k."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator
from torch import Tensor

from pipeline.functional.losses import softmax_cross_entropy
from pipeline.objectives.one_label import OneLabelSection


class Softmax(OneLabelSection):
    """Configures the cross-entropy against a distribution over classes, for classes that exclude one another (ImageNet-1k)."""

    name: Literal["softmax"] = "softmax"

    @model_validator(mode="after")
    def _targets_are_a_distribution(self) -> Self:
        if self.mixing.is_on and self.mixing.labels == "whole":
            raise ValueError(
                "mixing.labels=whole gives a mixed image two whole labels, which are no distribution over the classes, as the "
                "softmax loss needs; set mixing.labels=shares, or name=sigmoid"
            )
        return self

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        return softmax_cross_entropy(logits, targets)
