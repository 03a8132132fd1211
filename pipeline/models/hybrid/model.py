"""Define the hybrids of "An Image is Worth 16x16 Words" (arXiv 2010.11929, section 3.1): patches of a ResNet's feature map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from pipeline.image_size import height_and_width
from pipeline.models.bit.layers import GROUPS
from pipeline.models.bit.model import init_trunk
from pipeline.models.bit.trunk import MAX_STAGES, Trunk, TrunkConfig
from pipeline.models.description import from_plain
from pipeline.models.hybrid.cost import HybridCost
from pipeline.models.vit.encoder import EncoderBackbone
from pipeline.models.vit.encoder_config import EncoderConfig, conflict_of
from pipeline.models.vit.layers import lecun_normal_


@dataclass(frozen=True, kw_only=True)
class HybridConfig(EncoderConfig):
    """Holds everything that fixes a hybrid's weights.

    Attributes:
        blocks: of each stage of the ResNet; none: its root alone.
        root_width: channels of the root.
        patch_size: in pixels of the feature map.
    """

    family: ClassVar[str] = "hybrid"

    blocks: tuple[int, ...]
    root_width: int
    patch_size: int

    @property
    def trunk(self) -> TrunkConfig:
        return TrunkConfig(variant="v1", blocks=self.blocks, width=self.root_width)

    @property
    def stride(self) -> int:
        """Return how many pixels of the image, on each side, are one token."""
        return self.trunk.stride * self.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        height, width = height_and_width(self.image_size)
        return height // self.stride, width // self.stride

    @property
    def least_tensors(self) -> int:
        return self.depth + 3 * sum(self.blocks)

    @property
    def cost(self) -> HybridCost:
        return HybridCost(self)

    def build(self) -> Hybrid:
        return Hybrid(self)

    @classmethod
    def from_dict(cls, values: Any) -> HybridConfig:
        config = from_plain(HybridConfig, values)
        if conflict := conflict_of(config):
            raise ValueError(conflict)
        if len(config.blocks) > MAX_STAGES or config.root_width % GROUPS:
            raise ValueError("the model has too many stages, or channels that do not divide into groups")
        if any(side % config.stride for side in height_and_width(config.image_size)):
            raise ValueError("the model's image size is not divisible by its stride")
        return config


class Hybrid(EncoderBackbone):
    """Maps images to class logits. The ResNet is BiT's in its variant v1, with TensorFlow's SAME padding."""

    patch_embed: nn.Sequential

    def __init__(self, config: HybridConfig) -> None:
        patch = config.patch_size
        projection = nn.Conv2d(config.trunk.out_channels, config.width, kernel_size=patch, stride=patch)
        super().__init__(config, patch_embed=nn.Sequential(Trunk(config.trunk), projection))

    def init_patch_embed(self, generator: torch.Generator) -> None:
        trunk, projection = self.patch_embed
        assert isinstance(trunk, Trunk)
        assert isinstance(projection, nn.Conv2d)
        init_trunk(trunk, generator)
        lecun_normal_(projection.weight, generator)
