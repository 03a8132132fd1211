"""Compute the cost of one image in a backbone of timm. It is counted once for each model, on tensors without storage."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import nn

from pipeline.distributed.precision import TrainingPrecision
from pipeline.models.base import BlockCost, Cost
from pipeline.models.counting import SavedBytes, count_blocks, count_macs, count_saved_bytes

if TYPE_CHECKING:
    from pipeline.models.timm.model import TimmConfig


@dataclass(frozen=True)
class TimmCost(Cost):
    """Computes the cost of a backbone of timm."""

    model: TimmConfig

    @property
    def macs(self) -> int:
        """Return the multiply-accumulates of one forward pass: convolutions and matrix products, as torch counts them."""
        return _macs(self.model)

    def saved_bytes(self, *, precision: TrainingPrecision, mask_bytes: int = 1) -> int:
        return _saved(self.model, precision).per_image + 2 * 4 * self.model.num_classes

    def saved_bytes_once(self, *, precision: TrainingPrecision) -> int:
        return _saved(self.model, precision).once

    def blocks(self, *, precision: TrainingPrecision, mask_bytes: int = 1) -> list[BlockCost]:
        return count_blocks(self.model, precision)

    def working_bytes(self, *, precision: TrainingPrecision) -> int:
        """Return an estimate, the larger of two numbers, in bytes.

        One is the gradients of the largest saved tensor, of what an operation made of it and of a shortcut around it. The other
        is three times the logits, in fp32.
        """
        return 3 * max(_saved(self.model, precision).largest, 4 * self.model.num_classes)


@cache
def _macs(model: TimmConfig) -> int:
    return count_macs(model.build, image_size=model.image_size)


@cache
def _saved(model: TimmConfig, precision: TrainingPrecision) -> SavedBytes:
    """Return what is saved. `once` excludes autocast's bf16 copies of kernels, which are counted for all families."""
    saved = count_saved_bytes(model.build, image_size=model.image_size, precision=precision)
    with torch.device("meta"):
        kernels = sum(module.weight.numel() for module in model.build().modules() if isinstance(module, nn.Linear | nn.Conv2d))
    copies = 2 * kernels if precision == "bf16_autocast" else 0
    return SavedBytes(per_image=saved.per_image, once=max(0, saved.once - copies), largest=saved.largest)
