"""BiT's ResNets: trunk, global average, one dense layer (arXiv 1912.11370, section 3.2)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, get_args

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pipeline.models.base import Backbone, ModelConfig
from pipeline.models.bit.cost import BiTCost
from pipeline.models.bit.layers import GROUPS, StdConv2d, Variant
from pipeline.models.bit.trunk import MAX_STAGES, PostActivation, Trunk, TrunkConfig
from pipeline.models.vit.layers import lecun_normal_

LARGEST_SIZE = 2**31 - 1  # of a width, a stage, ... that is read from a file


@dataclass(frozen=True)
class BiTConfig(ModelConfig):
    """Everything that fixes a ResNet's weights. Lengths in pixels, `width` in channels of the root."""

    family: ClassVar[str] = "bit"

    image_size: int  # type: ignore[override]  # a square alone
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

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "blocks": list(self.blocks)}

    @classmethod
    def from_dict(cls, values: Any) -> BiTConfig:
        known = {field.name for field in fields(BiTConfig)}
        if not isinstance(values, dict) or values.keys() != known:
            raise ValueError(f"the model's description is not the keys {', '.join(sorted(known))}")
        blocks = blocks_from(values["blocks"])
        for name in ("image_size", "width", "num_classes"):
            if type(values[name]) is not int or not 1 <= values[name] <= LARGEST_SIZE:
                raise ValueError(f"the model's {name} is {str(values[name])[:40]}")
        if type(values["head_bias"]) not in (int, float) or not math.isfinite(values["head_bias"]):
            raise ValueError(f"the model's head_bias is {str(values['head_bias'])[:40]}")
        if values["variant"] not in get_args(Variant) or values["width"] % GROUPS or not blocks:
            raise ValueError("the model has an unknown variant, channels that do not divide into groups, or no blocks")
        return BiTConfig(**{**values, "blocks": blocks})


def blocks_from(values: Any) -> tuple[int, ...]:
    """Blocks of each stage from a file.

    Raises:
        ValueError: they are none.
    """
    if not isinstance(values, list) or not all(type(count) is int and 1 <= count <= LARGEST_SIZE for count in values):
        raise ValueError(f"the model's blocks are {str(values)[:40]}")
    if len(values) > MAX_STAGES:
        raise ValueError(f"the model has {len(values)} stages, which is more than {MAX_STAGES}")
    return tuple(values)


class BiTResNet(Backbone):
    """Images in, class logits out. `forward_representation` is the global average of the trunk's feature map."""

    def __init__(self, config: BiTConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config.trunk)
        self.head = nn.Linear(config.trunk.out_channels, config.num_classes)

    def forward_features(self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B R h w"]:
        """The feature map. uint8 images are scaled to [-1, 1] here, on the device."""
        if images.dtype == torch.uint8:
            images = images.float() / 127.5 - 1.0
        return self.trunk(images.to(self.head.weight.dtype))

    def forward_representation(self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B R"]:
        return self.forward_features(images).mean(dim=(2, 3))

    def forward(self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        return self.head(self.forward_representation(images))

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
