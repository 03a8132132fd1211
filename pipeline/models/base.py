"""What every model family gives to the rest: a configuration that builds, and a model that has a representation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pipeline.distributed.precision import TrainingPrecision


class Backbone(nn.Module):
    """uint8 images (B, 3, S, S) in, class logits (B, C) out. Its classifier is one dense layer on a representation."""

    @abstractmethod
    def forward_representation(self, images: Tensor) -> Tensor:
        """What the classifier reads: (B, R)."""

    @abstractmethod
    def init_weights(self, generator: torch.Generator) -> None:
        """Initialise in place, drawing from `generator` alone."""


class Cost(ABC):
    """What one image costs: operations, and bytes of activations. Computed, not measured."""

    @property
    @abstractmethod
    def macs(self) -> int:
        """Multiply-accumulates of one forward pass."""

    @property
    def training_flops(self) -> int:
        """Floating-point operations of training on one image: forward, and backward as twice that, at two operations each."""
        return 6 * self.macs

    @abstractmethod
    def saved_bytes(self, *, precision: TrainingPrecision, mask_bytes: int = 1) -> int:
        """Bytes that the forward pass keeps for the backward pass.

        Args:
            mask_bytes: of one element of a dropout mask: 1 on GPUs, where it is boolean.
        """

    def saved_bytes_once(self, *, precision: TrainingPrecision) -> int:
        """Bytes kept for the backward pass once, whatever the batch, besides the bf16 copies that autocast makes of kernels."""
        return 0

    @abstractmethod
    def working_bytes(self, *, precision: TrainingPrecision) -> int:
        """Most that one operation of the backward pass takes beyond what was saved."""


class ModelConfig(ABC):
    """Everything that fixes a model's weights: frozen dataclasses. Lengths in pixels."""

    family: ClassVar[str]  # as in the section, and in the header of a weights file

    image_size: int
    num_classes: int
    dropout: float

    @abstractmethod
    def build(self) -> Backbone:
        """The model, its weights not initialised."""

    @property
    @abstractmethod
    def cost(self) -> Cost:
        """What one image costs."""

    @property
    @abstractmethod
    def least_tensors(self) -> int:
        """A lower bound of the tensors of a state dict: a damaged file may describe a model of any size."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """For JSON."""

    @classmethod
    @abstractmethod
    def from_dict(cls, values: Any) -> ModelConfig:
        """What `to_dict` wrote, after a way through a file.

        Raises:
            ValueError: it is none.
        """
