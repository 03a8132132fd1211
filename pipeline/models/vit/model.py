"""The Vision Transformer of "An Image is Worth 16x16 Words" (arXiv 2010.11929, section 3.1)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import nn

from pipeline.models.vit.cost import ViTCost
from pipeline.models.vit.encoder import EncoderBackbone, EncoderConfig
from pipeline.models.vit.layers import lecun_normal_

LARGEST_SIZE = 2**31 - 1  # of a width, a depth, ... that is read from a file


@dataclass(frozen=True, kw_only=True)
class ViTConfig(EncoderConfig):
    """Everything that fixes a ViT's weights. Lengths in pixels, widths in channels."""

    family: ClassVar[str] = "vit"

    image_size: int
    patch_size: int

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size // self.patch_size, self.image_size // self.patch_size

    @property
    def least_tensors(self) -> int:
        return self.depth  # a block has several

    @property
    def cost(self) -> ViTCost:
        return ViTCost(self)

    def build(self) -> VisionTransformer:
        return VisionTransformer(self)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> ViTConfig:
        known = {field.name for field in fields(ViTConfig)}
        if not isinstance(values, dict) or values.keys() != known:
            raise ValueError(f"the model's description is not the keys {', '.join(sorted(known))}")
        optional = {"representation_size"} if values["representation_size"] is None else set()
        for name in sorted(known - {"dropout", "head_bias"} - optional):
            if type(values[name]) is not int or not 1 <= values[name] <= LARGEST_SIZE:
                raise ValueError(f"the model's {name} is {str(values[name])[:40]}")
        for name in ("dropout", "head_bias"):
            if type(values[name]) not in (int, float) or not math.isfinite(values[name]):
                raise ValueError(f"the model's {name} is {str(values[name])[:40]}")
        config = ViTConfig(**values)
        if config.image_size % config.patch_size or config.width % config.num_heads or not 0 <= config.dropout < 1:
            raise ValueError("the model's sizes do not divide, or its dropout is not in [0, 1)")
        return config


class VisionTransformer(EncoderBackbone):
    """Images in, class logits out: square patches, each embedded by one dense layer (a convolution with that stride)."""

    patch_embed: nn.Conv2d

    def __init__(self, config: ViTConfig) -> None:
        patch = config.patch_size
        super().__init__(config, patch_embed=nn.Conv2d(3, config.width, kernel_size=patch, stride=patch))

    def init_patch_embed(self, generator: torch.Generator) -> None:
        lecun_normal_(self.patch_embed.weight, generator)
