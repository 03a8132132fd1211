"""Binary cross-entropy of each class: ImageNet-21k and JFT, whose classes overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from pipeline.functional.losses import sigmoid_cross_entropy
from pipeline.objectives.base import Loss, ObjectiveSection
from pipeline.objectives.one_label import one_label_loss

if TYPE_CHECKING:
    from torchmetrics import Metric


class Sigmoid(ObjectiveSection):
    """Binary cross-entropy summed over the classes: for classes that overlap (ImageNet-21k, JFT)."""

    name: Literal["sigmoid"] = "sigmoid"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    head_bias: ClassVar[float] = -10.0  # google-research/vision_transformer, issue #34

    def build(self, *, num_classes: int) -> Loss:
        return one_label_loss(sigmoid_cross_entropy, num_classes=num_classes, label_smoothing=self.label_smoothing)

    def metrics(self, *, num_classes: int) -> dict[str, Metric]:
        from pipeline.objectives.accuracy import top1

        return top1(num_classes)
