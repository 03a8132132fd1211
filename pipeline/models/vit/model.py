"""The Vision Transformer of "An Image is Worth 16x16 Words" (arXiv 2010.11929, section 3.1)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pipeline.models.base import Backbone, ModelConfig
from pipeline.models.vit.cost import ViTCost
from pipeline.models.vit.layers import LAYER_NORM_EPS, EncoderBlock

POSITION_STD = 0.02  # N(0, 0.02) for position embeddings (authors' code)
MLP_BIAS_STD = 1e-6  # MLP biases (authors' code)
LARGEST_SIZE = 2**31 - 1  # of a width, a depth, ... that is read from a file


@dataclass(frozen=True)
class ViTConfig(ModelConfig):
    """Everything that fixes a ViT's weights. Lengths in pixels, widths in channels."""

    family: ClassVar[str] = "vit"

    image_size: int
    patch_size: int
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_classes: int
    representation_size: int | None
    dropout: float
    head_bias: float = 0.0

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

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


class VisionTransformer(Backbone):
    """Images in, class logits out.

    Learned 1-D position embeddings, a class token, pre-LN encoder, final LayerNorm, and a head that is one dense
    layer with tanh ("pre-logits", `representation_size` wide) followed by a linear classifier. The tanh layer is
    the hidden layer of the pretraining head (section 3.1); without it (`None`) the classifier reads the class token.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embed = nn.Conv2d(3, width, kernel_size=config.patch_size, stride=config.patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, 1 + config.num_patches, width))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            EncoderBlock(width=width, num_heads=config.num_heads, mlp_dim=config.mlp_dim, dropout=config.dropout)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.pre_logits = None if config.representation_size is None else nn.Linear(width, config.representation_size)
        self.head = nn.Linear(config.representation_size or width, config.num_classes)

    def forward_tokens(self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """All tokens after the final LayerNorm; the class token is the first.

        uint8 images are scaled to [-1, 1] here, on the device; floating-point ones are taken as already scaled.
        """
        if images.dtype == torch.uint8:
            images = images.float() / 127.5 - 1.0
        patches = self.patch_embed(images.to(self.patch_embed.weight.dtype))  # (B, D, h, w)
        tokens = patches.flatten(2).transpose(1, 2)  # (B, h*w, D)
        tokens = torch.cat([self.class_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)
        tokens = self.dropout(tokens + self.position)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def forward_representation(self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B R"]:
        """What the linear classifier reads: tanh pre-logits, or the class token where there are none."""
        class_token = self.forward_tokens(images)[:, 0]  # (B, D)
        return class_token if self.pre_logits is None else torch.tanh(self.pre_logits(class_token))

    def forward(self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        return self.head(self.forward_representation(images))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Initialise in place as the authors' code does, drawing from `generator` alone.

        Xavier-uniform for attention (q, k and v each as a square matrix) and MLP kernels, MLP biases N(0, 1e-6),
        positions N(0, 0.02), LeCun-normal for patch embedding and pre-logits (Flax's default), zeros for class
        token and head kernel, `head_bias` for the head's bias (-10 with the sigmoid loss).
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        _lecun_normal_(self.patch_embed.weight, generator)
        nn.init.zeros_(self.class_token)
        nn.init.normal_(self.position, std=POSITION_STD, generator=generator)
        for block in self.blocks:
            assert isinstance(block, EncoderBlock)
            for part in block.attention.qkv.weight.chunk(3, dim=0):
                nn.init.xavier_uniform_(part, generator=generator)
            nn.init.xavier_uniform_(block.attention.out.weight, generator=generator)
            for dense in (block.mlp.up, block.mlp.down):
                nn.init.xavier_uniform_(dense.weight, generator=generator)
                nn.init.normal_(dense.bias, std=MLP_BIAS_STD, generator=generator)
        if self.pre_logits is not None:
            _lecun_normal_(self.pre_logits.weight, generator)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, self.config.head_bias)


def _lecun_normal_(weight: Tensor, generator: torch.Generator) -> None:
    """Truncated normal of variance 1 / fan_in, cut at two standard deviations (Flax `lecun_normal`)."""
    fan_in = weight[0].numel()
    std = fan_in**-0.5 / 0.87962566103423978  # divides out what the cut takes from the standard deviation
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)
