"""Define the Vision Transformer of "An Image is Worth 16x16 Words" (arXiv 2010.11929, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from pipeline.image_size import height_and_width
from pipeline.models.description import from_plain
from pipeline.models.vit.cost import ViTCost
from pipeline.models.vit.encoder import EncoderBackbone
from pipeline.models.vit.encoder_config import EncoderConfig, conflict_of
from pipeline.models.vit.layers import lecun_normal_


@dataclass(frozen=True, kw_only=True)
class ViTConfig(EncoderConfig):
    """Holds everything that fixes a ViT's weights. Lengths are in pixels, widths in channels."""

    family: ClassVar[str] = "vit"

    patch_size: int

    @property
    def grid(self) -> tuple[int, int]:
        height, width = height_and_width(self.image_size)
        return height // self.patch_size, width // self.patch_size

    @property
    def least_tensors(self) -> int:
        return self.depth  # a block has several

    @property
    def cost(self) -> ViTCost:
        return ViTCost(self)

    def build(self) -> VisionTransformer:
        return VisionTransformer(self)

    @classmethod
    def from_dict(cls, values: Any) -> ViTConfig:
        config = from_plain(ViTConfig, values)
        conflict = conflict_of(config)
        if conflict is not None or any(side % config.patch_size for side in height_and_width(config.image_size)):
            raise ValueError(conflict or "the model's image size is not divisible by its patch size")
        return config


class VisionTransformer(EncoderBackbone):
    """Maps images to class logits. Each square patch is embedded by one dense layer (a convolution with that stride)."""

    patch_embed: nn.Conv2d

    def __init__(self, config: ViTConfig) -> None:
        patch = config.patch_size
        super().__init__(config, patch_embed=nn.Conv2d(3, config.width, kernel_size=patch, stride=patch))

    def init_patch_embed(self, generator: torch.Generator) -> None:
        lecun_normal_(self.patch_embed.weight, generator)
