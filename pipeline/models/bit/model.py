"""Define BiT's ResNets: trunk, global average, one dense layer (arXiv 1912.11370, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pipeline.image_size import ImageSize
from pipeline.models.base import Backbone, ModelConfig, ModelOutputs
from pipeline.models.bit.cost import BiTCost
from pipeline.models.bit.layers import GROUPS, StdConv2d, Variant
from pipeline.models.bit.trunk import MAX_STAGES, PostActivation, Trunk, TrunkConfig
from pipeline.models.description import from_plain
from pipeline.models.vit.layers import lecun_normal_


@dataclass(frozen=True)
class BiTConfig(ModelConfig):
    """Holds everything that fixes a ResNet's weights. Lengths are in pixels, `width` is in channels of the root."""

    family: ClassVar[str] = "bit"

    image_size: ImageSize
    variant: Variant
    blocks: tuple[int, ...]
    width: int
    num_classes: int
    head_bias: float = 0.0

    @property
    def dropout(self) -> float:  # type: ignore[override]  # the definition has none
        return 0.0

    @property
    def trunk(self) -> TrunkConfig:
        return TrunkConfig(variant=self.variant, blocks=self.blocks, width=self.width)

    @property
    def least_tensors(self) -> int:
        return 3 * sum(self.blocks)  # a block has three convolutions and their normalisations

    @property
    def cost(self) -> BiTCost:
        return BiTCost(self)

    def build(self) -> BiTResNet:
        return BiTResNet(self)

    @classmethod
    def from_dict(cls, values: Any) -> BiTConfig:
        config = from_plain(BiTConfig, values)
        if not 1 <= len(config.blocks) <= MAX_STAGES or config.width % GROUPS:
            raise ValueError("the model has no stages or too many, or channels that do not divide into groups")
        return config


class BiTResNet(Backbone):
    """Maps images to class logits. `forward_representation` is the global average of the trunk's feature map."""

    def __init__(self, config: BiTConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config.trunk)
        self.head = nn.Linear(config.trunk.out_channels, config.num_classes)

    def forward_features(self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B R h w"]:
        """Return the feature map. uint8 images are scaled to [-1, 1] here, on the device."""
        images = self.scale(images)
        return self.trunk(images.to(self.head.weight.dtype))

    def forward_representation(self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B R"]:
        return self.forward_features(images).mean(dim=(2, 3))

    def forward_outputs(self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]) -> ModelOutputs:
        """Return the outputs. Patches are the pixels of the feature map, and nothing lies between pooling and classifier."""
        features = self.forward_features(images)
        pooled = features.mean(dim=(2, 3))
        return ModelOutputs(pooled, pooled, features.flatten(2).transpose(1, 2))

    def forward(self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        return self.head(self.forward_representation(images))

    def repeated_blocks(self) -> Sequence[nn.Module]:
        return [unit for stage in self.trunk.stages for unit in stage.children()]

    def layer_numbers(self) -> dict[str, int]:
        """Return `layer_numbers` by a trunk's blocks: its root is layer 0, last normalisation and head are the last."""
        units = [f"trunk.stages.{stage}.{unit}." for stage, count in enumerate(self.config.blocks) for unit in range(count)]
        numbers = {}
        for name, _ in self.named_parameters():
            inside = next((number for number, unit in enumerate(units, start=1) if name.startswith(unit)), len(units) + 1)
            numbers[name] = 0 if "_root." in name else inside
        return numbers

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Initialise in place as big_vision's `bit.py` and `bit_paper.py`, drawing from `generator` alone.

        LeCun-normal for the convolutions (Flax's default), ones and zeros for normalisations, zeros for the head's kernel,
        `head_bias` for its bias.
        """
        init_trunk(self.trunk, generator)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, self.config.head_bias)


@torch.no_grad()
def init_trunk(trunk: Trunk, generator: torch.Generator) -> None:
    """Initialise a trunk in place. A v1 block's last scale is 0, so that the block begins as its shortcut."""
    for module in trunk.modules():
        if isinstance(module, StdConv2d):
            lecun_normal_(module.weight, generator)
        elif isinstance(module, nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    for module in trunk.modules():
        if isinstance(module, PostActivation):
            nn.init.zeros_(module.gn3.weight)
