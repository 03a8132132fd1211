"""Define the trunk of a ResNet: root and stages of bottleneck blocks, from images to a feature map."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.models.bit.layers import StdConv2d, Variant, group_norm, max_pool

MAX_STAGES = 8  # each halves the image and doubles the channels


@dataclass(frozen=True)
class TrunkConfig:
    """Holds everything that fixes a trunk's weights.

    Attributes:
        blocks: bottleneck blocks of each stage; none: the root alone.
        width: channels of the root; stage i has width x 2^i in its 3x3 convolutions and four times as many at its end.
    """

    variant: Variant
    blocks: tuple[int, ...]
    width: int

    @property
    def out_channels(self) -> int:
        return 4 * self.width * 2 ** (len(self.blocks) - 1) if self.blocks else self.width

    @property
    def stride(self) -> int:
        """Return how many pixels of the image, on each side, are one of the feature map."""
        return 2 ** (1 + max(1, len(self.blocks)))


class PostActivation(nn.Module):
    """Applies v1's order: convolution, normalisation, ReLU, with the last ReLU after the sum.

    The block begins as its shortcut: gn3's scale is initialised to 0.
    """

    def __init__(self, in_channels: int, *, mid: int, stride: int) -> None:
        super().__init__()
        out = 4 * mid
        self.conv1 = StdConv2d(in_channels, mid, kernel=1, variant="v1")
        self.gn1 = group_norm(mid, variant="v1")
        self.conv2 = StdConv2d(mid, mid, kernel=3, stride=stride, variant="v1")
        self.gn2 = group_norm(mid, variant="v1")
        self.conv3 = StdConv2d(mid, out, kernel=1, variant="v1")
        self.gn3 = group_norm(out, variant="v1")
        has_projection = stride != 1 or in_channels != out
        self.conv_proj = StdConv2d(in_channels, out, kernel=1, stride=stride, variant="v1") if has_projection else None
        self.gn_proj = group_norm(out, variant="v1") if has_projection else None

    def forward(self, images: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O h w"]:
        shortcut = images
        if self.conv_proj is not None and self.gn_proj is not None:
            shortcut = self.gn_proj(self.conv_proj(images))
        images = F.relu(self.gn1(self.conv1(images)))
        images = F.relu(self.gn2(self.conv2(images)))
        return F.relu(self.gn3(self.conv3(images)) + shortcut)


class PreActivation(nn.Module):
    """Applies v2's order: normalisation, ReLU, convolution.

    The projection reads what is activated already, and has no normalisation.
    """

    def __init__(self, in_channels: int, *, mid: int, stride: int) -> None:
        super().__init__()
        out = 4 * mid
        self.gn1 = group_norm(in_channels, variant="v2")
        self.conv1 = StdConv2d(in_channels, mid, kernel=1, variant="v2")
        self.gn2 = group_norm(mid, variant="v2")
        self.conv2 = StdConv2d(mid, mid, kernel=3, stride=stride, variant="v2")
        self.gn3 = group_norm(mid, variant="v2")
        self.conv3 = StdConv2d(mid, out, kernel=1, variant="v2")
        has_projection = stride != 1 or in_channels != out
        self.conv_proj = StdConv2d(in_channels, out, kernel=1, stride=stride, variant="v2") if has_projection else None

    def forward(self, images: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O h w"]:
        active = F.relu(self.gn1(images))
        shortcut = images if self.conv_proj is None else self.conv_proj(active)
        images = self.conv1(active)
        images = self.conv2(F.relu(self.gn2(images)))
        return self.conv3(F.relu(self.gn3(images))) + shortcut


class Trunk(nn.Module):
    """Maps scaled images to a feature map. v2 ends with a normalisation and a ReLU, v1 has them in its root and blocks."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.variant: Variant = config.variant
        self.conv_root = StdConv2d(3, config.width, kernel=7, stride=2, variant=config.variant)
        self.gn_root = group_norm(config.width, variant="v1") if config.variant == "v1" else None
        block = PostActivation if config.variant == "v1" else PreActivation
        channels = config.width
        self.stages = nn.Sequential()
        for number, count in enumerate(config.blocks):
            mid = config.width * 2**number
            strides = [1 if number == 0 else 2] + [1] * (count - 1)
            inputs = [channels] + [4 * mid] * (count - 1)
            units = [block(size, mid=mid, stride=stride) for size, stride in zip(inputs, strides, strict=True)]
            self.stages.append(nn.Sequential(*units))
            channels = 4 * mid
        self.gn_end = group_norm(channels, variant="v2") if config.variant == "v2" else None

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B O h w"]:
        features = self.conv_root(images)
        if self.gn_root is not None:
            features = F.relu(self.gn_root(features))
        features = max_pool(features, variant=self.variant)
        features = self.stages(features)
        return features if self.gn_end is None else F.relu(self.gn_end(features))
