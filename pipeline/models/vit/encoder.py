"""What follows the patch embedding: class token, positions, encoder, pooling and head, for every model that makes patches."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pipeline.models.base import Backbone, ModelConfig
from pipeline.models.vit.layers import LAYER_NORM_EPS, EncoderBlock, lecun_normal_

POSITION_STD = 0.02  # N(0, 0.02) for position embeddings (authors' code)
MLP_BIAS_STD = 1e-6  # MLP biases (authors' code)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(ModelConfig):
    """Everything that fixes the weights of a Transformer encoder over patches. Widths in channels."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_classes: int
    representation_size: int | None
    dropout: float
    head_bias: float = 0.0

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""

    @property
    def num_patches(self) -> int:
        rows, columns = self.grid
        return rows * columns


class EncoderBackbone(Backbone):
    """A patch embedding, then the encoder of ViT and its head; a family gives the patch embedding.

    Learned 1-D position embeddings, a class token, pre-LN encoder, final LayerNorm, and a head that is one dense
    layer with tanh ("pre-logits", `representation_size` wide) followed by a linear classifier. The tanh layer is
    the hidden layer of the pretraining head (section 3.1); without it (`None`) the classifier reads the class token.

    The parts of the forward pass are methods: `embed_patches`, `encode`, `pool`. The parameters that they read directly
    belong to this module, so that ZeRO-3, which gathers a module's parameters when it is called, has them.

    Args:
        patch_embed: (B, 3, H, W) to (B, D, rows, columns).
    """

    def __init__(self, config: EncoderConfig, *, patch_embed: nn.Module) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embed = patch_embed
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

    @abstractmethod
    def init_patch_embed(self, generator: torch.Generator) -> None:
        """Initialise the patch embedding's kernels in place; its biases are zeros already."""

    def embed_patches(self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B P D"]:
        """Patch embeddings in raster order, before positions.

        uint8 images are scaled to [-1, 1] here, on the device; floating-point ones are taken as already scaled.
        """
        if images.dtype == torch.uint8:
            images = images.float() / 127.5 - 1.0
        patches = self.patch_embed(images.to(next(self.patch_embed.parameters()).dtype))  # (B, D, h, w)
        return patches.flatten(2).transpose(1, 2)  # (B, h*w, D)

    def encode(self, patches: Float[Tensor, "B P D"]) -> Float[Tensor, "B N D"]:
        """All tokens after the final LayerNorm, of patch embeddings; the class token is the first."""
        tokens = torch.cat([self.class_token.expand(patches.shape[0], -1, -1).to(patches.dtype), patches], dim=1)
        tokens = self.dropout(tokens + self.position)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def pool(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B R"]:
        """What the linear classifier reads of `encode`'s tokens: tanh pre-logits, or the class token where there are none."""
        class_token = tokens[:, 0]  # (B, D)
        return class_token if self.pre_logits is None else torch.tanh(self.pre_logits(class_token))

    def forward_tokens(self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """All tokens after the final LayerNorm; the class token is the first."""
        return self.encode(self.embed_patches(images))

    def forward_representation(self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B R"]:
        return self.pool(self.forward_tokens(images))

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
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        self.init_patch_embed(generator)
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
            lecun_normal_(self.pre_logits.weight, generator)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, self.config.head_bias)
