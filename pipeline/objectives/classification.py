"""Define what objectives over classes share: targets from labels, smoothing, and mixed pairs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from pipeline.functional.losses import smooth
from pipeline.models.base import Backbone, ModelConfig
from pipeline.objectives.base import Objective, ObjectiveOutput, ObjectiveSection
from pipeline.objectives.mixing import Mixer, Mixing


class Classification(Objective):
    """Computes the loss of a model's logits and of targets over classes. In eval mode nothing is mixed or smoothed.

    Args:
        targets: of labels (L,) and their ends (B,): a row of 0 and 1 an image, (B, C).
        cross_entropy: of logits and targets, both (B, C).
        label_smoothing: part of each target that is spread over all classes.
        mixer: mixes images and targets; None leaves them.
        has_one_label: metrics are given the images' only labels; else the targets.
    """

    def __init__(
        self,
        *,
        targets: Callable[[Tensor, Tensor], Tensor],
        cross_entropy: Callable[[Tensor, Tensor], Tensor],
        label_smoothing: float,
        mixer: Mixer | None,
        has_one_label: bool,
    ) -> None:
        super().__init__()
        self.targets = targets
        self.cross_entropy = cross_entropy
        self.label_smoothing = label_smoothing
        self.mixer = mixer
        self.has_one_label = has_one_label

    def forward(self, model: Backbone, batch: Mapping[str, Any]) -> ObjectiveOutput:
        truth = self.targets(batch["labels"], batch["label_ends"])  # (B, C)
        images, targets = batch["images"], truth
        if self.mixer is not None and self.training:
            with torch.no_grad():
                images, targets = self.mixer(model.scale(images), targets, positions=batch["positions"])
        if self.training:
            targets = smooth(targets, label_smoothing=self.label_smoothing)
        logits = model(images)  # (B, C)
        compared = batch["labels"] if self.has_one_label else truth
        return ObjectiveOutput(self.cross_entropy(logits, targets), logits.detach(), compared)


class ClassificationSection(ObjectiveSection):
    """Configures an objective over classes."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="part of a target that is spread over all classes")
    mixing: Mixing = Field(default=Mixing(), description="MixUp and CutMix")  # type: ignore[call-arg]

    @property
    def images_together(self) -> int:
        return 2 if self.mixing.is_on else 1

    @abstractmethod
    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of logits and targets, both (B, C): a scalar, in fp32, the mean over images."""

    @abstractmethod
    def make_targets(self, model: ModelConfig, *, class_names: Sequence[str] | None) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the targets of labels (L,) and their ends (B,): a row of 0 and 1 an image, (B, C), in fp32."""

    def build(self, model: ModelConfig, *, seed: int, class_names: Sequence[str] | None) -> Objective:
        return Classification(
            targets=self.make_targets(model, class_names=class_names),
            cross_entropy=self.cross_entropy,
            label_smoothing=self.label_smoothing,
            mixer=Mixer(self.mixing, seed) if self.mixing.is_on else None,
            has_one_label=self.labels == "one",
        )
