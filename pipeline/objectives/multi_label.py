"""Compute the binary cross-entropy of images with several labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from pipeline.functional.losses import Reduction, multi_hot_targets, sigmoid_cross_entropy
from pipeline.models.base import ModelConfig
from pipeline.objectives.base import LabelKind, Probabilities
from pipeline.objectives.classification import ClassificationSection
from pipeline.objectives.hierarchy import Hierarchy, read_hierarchy

if TYPE_CHECKING:
    from torchmetrics import Metric


class MultiLabel(ClassificationSection):
    """Configures the binary cross-entropy of each class, for images with any number of labels.

    Such labels are .json members: {"labels": [3, 7]}.
    """

    name: Literal["multi_label"] = "multi_label"
    reduction: Reduction = Field(default="sum", description="how the classes' losses are joined")
    hierarchy: str | None = Field(
        default=None, description="file of lines CLASS PARENT (numbers, or names of classes.txt): ancestors become labels too"
    )

    head_bias: float = Field(default=-10.0, description="what the classifier's biases begin at, as with one label")

    labels: ClassVar[LabelKind] = "several"
    probabilities: ClassVar[Probabilities | None] = "sigmoid"

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        return sigmoid_cross_entropy(logits, targets, reduction=self.reduction)

    def check(self, model: ModelConfig, *, class_names: Sequence[str] | None) -> None:
        self._hierarchy(model, class_names)

    def remarks(self, model: ModelConfig, *, class_names: Sequence[str] | None) -> list[str]:
        hierarchy = self._hierarchy(model, class_names)
        if hierarchy is None:
            return []
        count = hierarchy.num_with_ancestors  # lines with names of other spelling are silent: they may lie between two classes
        return [f"objective.hierarchy gives {count} of {model.num_classes} classes ancestors among the classes"]

    def make_targets(self, model: ModelConfig, *, class_names: Sequence[str] | None) -> Callable[[Tensor, Tensor], Tensor]:
        hierarchy = self._hierarchy(model, class_names)

        def targets(labels: Tensor, ends: Tensor) -> Tensor:
            if hierarchy is not None:
                return hierarchy.targets(labels, ends)
            return multi_hot_targets(labels, ends, num_classes=model.num_classes)

        return targets

    def metrics(self, model: ModelConfig) -> dict[str, Metric]:
        from pipeline.objectives.accuracy import HitAt1

        return {"train/hit_at_1": HitAt1()}

    def held_out_metrics(self, model: ModelConfig) -> dict[str, Metric]:
        from pipeline.objectives.accuracy import HitAt1, MeanAveragePrecision

        return {"mAP": MeanAveragePrecision(), "hit@1": HitAt1()}

    def _hierarchy(self, model: ModelConfig, class_names: Sequence[str] | None) -> Hierarchy | None:
        if self.hierarchy is None:
            return None
        return read_hierarchy(self.hierarchy, num_classes=model.num_classes, class_names=class_names)
