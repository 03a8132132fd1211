"""Compute the cost of one image in a hybrid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.distributed.precision import TrainingPrecision, product_bytes, weight_bytes
from pipeline.image_size import height_and_width
from pipeline.models.bit.cost import TrunkCost, standardising_bytes
from pipeline.models.vit.cost import EncoderCost

if TYPE_CHECKING:
    from pipeline.models.hybrid.model import HybridConfig


@dataclass(frozen=True)
class HybridCost(EncoderCost):
    """Computes the cost of a hybrid: of its trunk, of its projection to tokens, and of its encoder."""

    encoder: HybridConfig

    @property
    def trunk(self) -> TrunkCost:
        return TrunkCost(self.encoder.trunk, height_and_width(self.encoder.image_size))

    @property
    def embedding_macs(self) -> int:
        config = self.encoder
        return self.trunk.macs + config.num_patches * config.trunk.out_channels * config.patch_size**2 * config.width

    def embedding_saved_bytes(self, *, precision: TrainingPrecision) -> int:
        """Return the trunk's bytes, and those that the projection reads unless a ReLU's output holds them already."""
        config = self.encoder
        low = product_bytes(precision)
        is_shared = bool(config.blocks) and precision != "bf16_autocast"
        pixels = config.num_patches * config.patch_size**2
        return self.trunk.saved_bytes(precision=precision) + (0 if is_shared else low * config.trunk.out_channels * pixels)

    def saved_bytes_once(self, *, precision: TrainingPrecision) -> int:
        return standardising_bytes(self.trunk.kernels, precision=precision)

    def working_bytes(self, *, precision: TrainingPrecision) -> int:
        """Return the encoder's, or the trunk's if larger: gradients of a block's output, its branch and its shortcut."""
        high = weight_bytes(precision)
        return max(super().working_bytes(precision=precision), 3 * high * self.trunk.largest_map)
