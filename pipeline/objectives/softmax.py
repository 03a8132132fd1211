"""Cross-entropy over classes of which an image has one: ImageNet-1k."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline.functional.losses import softmax_cross_entropy
from pipeline.objectives.base import Loss, ObjectiveSection
from pipeline.objectives.one_label import one_label_loss

if TYPE_CHECKING:
    from torchmetrics import Metric


class Softmax(ObjectiveSection):
    """Cross-entropy against a distribution over classes: for classes that exclude one another (ImageNet-1k)."""

    name: Literal["softmax"] = "softmax"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    def build(self, *, num_classes: int) -> Loss:
        return one_label_loss(softmax_cross_entropy, num_classes=num_classes, label_smoothing=self.label_smoothing)

    def metrics(self, *, num_classes: int) -> dict[str, Metric]:
        from pipeline.objectives.accuracy import top1

        return top1(num_classes)
