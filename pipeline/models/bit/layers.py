"""Define standardised convolutions, group normalisation and pooling of BiT's ResNets, in both variants.

| | v2: BiT as released (arXiv 1912.11370) | v1: big_vision's `bit.py`, stem of the hybrids (arXiv 2010.11929) |
|---|---|---|
| kernel | (w - mean) / sqrt(variance + 1e-10) | (w - mean) / (deviation + 1e-5) |
| group normalisation | epsilon 1e-5 | epsilon 1e-6 (Flax's default) |
| padding | the same on all sides | TensorFlow's SAME: the odd pixel after the image |
| max-pool | 3x3, stride 2, over an image padded with zeros, which take part | 3x3, stride 2, SAME: padding never wins |

The sources are google-research/big_transfer `bit_pytorch/models.py` and google-research/big_vision `models/bit_paper.py`,
`models/bit.py`.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Variant = Literal["v1", "v2"]

GROUPS = 32
NORM_EPS: dict[Variant, float] = {"v1": 1e-6, "v2": 1e-5}
KERNEL_EPS: dict[Variant, float] = {"v1": 1e-5, "v2": 1e-10}


def same_padding(size: int, *, kernel: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's SAME padding before and after `size` pixels, of which ceil(size / stride) are left."""
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2


class StdConv2d(nn.Conv2d):
    """Convolves without bias. The kernel is standardised over (in, h, w), in fp32, before each use."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int, variant: Variant, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.variant: Variant = variant

    def standardised(self) -> Float[Tensor, "O I K K"]:
        """Return the kernel that the images meet."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
        eps = KERNEL_EPS[self.variant]
        scale = (variance + eps).rsqrt() if self.variant == "v2" else 1 / (variance.sqrt() + eps)
        return ((weight - mean) * scale).to(self.weight.dtype)

    def forward(self, input: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O h w"]:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        if self.variant == "v1":
            top, bottom = same_padding(input.shape[2], kernel=kernel, stride=stride)
            left, right = same_padding(input.shape[3], kernel=kernel, stride=stride)
            if (top, left) != (bottom, right):
                input = F.pad(input, (left, right, top, bottom))
                return F.conv2d(input, self.standardised(), stride=self.stride)
            return F.conv2d(input, self.standardised(), stride=self.stride, padding=(top, left))
        return F.conv2d(input, self.standardised(), stride=self.stride, padding=kernel // 2)


def group_norm(channels: int, *, variant: Variant) -> nn.GroupNorm:
    """Return the normalisation over groups of a 32nd of the channels."""
    return nn.GroupNorm(GROUPS, channels, eps=NORM_EPS[variant])


def max_pool(images: Float[Tensor, "B C H W"], *, variant: Variant) -> Float[Tensor, "B C h w"]:
    """Return the 3x3 maximum at stride 2."""
    if variant == "v2":
        return F.max_pool2d(F.pad(images, (1, 1, 1, 1)), 3, 2)
    # With an even size the last window reaches beyond the border, with an odd size the first and the last do.
    height, width = images.shape[2:]
    if height % 2 == width % 2:
        return F.max_pool2d(images, 3, 2, padding=height % 2, ceil_mode=height % 2 == 0)
    (top, bottom), (left, right) = (same_padding(size, kernel=3, stride=2) for size in (height, width))
    return F.max_pool2d(F.pad(images, (left, right, top, bottom), value=-torch.inf), 3, 2)
