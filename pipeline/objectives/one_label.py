"""Define what objectives of images with one label share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from pipeline.functional.losses import one_hot_targets
from pipeline.models.base import ModelConfig
from pipeline.objectives.classification import ClassificationSection

if TYPE_CHECKING:
    from torchmetrics import Metric


class OneLabelSection(ClassificationSection):
    """Configures an objective of images with one label."""

    def make_targets(self, model: ModelConfig, *, class_names: Sequence[str] | None) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda labels, _ends: one_hot_targets(labels, num_classes=model.num_classes)

    def metrics(self, model: ModelConfig) -> dict[str, Metric]:
        from pipeline.objectives.accuracy import top_k

        return {"train/accuracy": top_k(model.num_classes, k=1)}

    def held_out_metrics(self, model: ModelConfig) -> dict[str, Metric]:
        from pipeline.objectives.accuracy import top_1_and_5

        return top_1_and_5(model.num_classes)
