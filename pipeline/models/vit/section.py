"""The settings of a Vision Transformer."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from pipeline.errors import ConfigError
from pipeline.models.base import ModelConfig
from pipeline.models.section import ModelSection
from pipeline.models.vit.model import ViTConfig
from pipeline.models.vit.sizes import parse_name


class ViT(ModelSection):
    """The Vision Transformer."""

    family: Literal["vit"] = "vit"
    name: str = Field("L/16", description="size (Ti, S, B, L, H) and patch size in pixels")
    image_size: int = Field(224, ge=1, description="side of the square input in pixels; a multiple of the patch size")
    representation: Literal["tanh", "none"] = Field("tanh", description="pre-logits layer of the pretraining head")
    dropout: float = Field(0.0, ge=0, lt=1, description="after every dense layer but qkv, and after the positions")
    width: int | None = Field(None, ge=1, description="overrides the size's width (for models of your own)")
    depth: int | None = Field(None, ge=1, description="overrides the size's number of blocks")
    mlp_dim: int | None = Field(None, ge=1, description="overrides the size's MLP width")
    num_heads: int | None = Field(None, ge=1, description="overrides the size's number of heads")

    config_type: ClassVar[type[ModelConfig]] = ViTConfig

    @property
    def title(self) -> str:
        return f"ViT-{self.name}"

    def resolve(self, *, head_bias: float = 0.0) -> ViTConfig:
        size, patch_size = parse_name(self.name)
        if self.image_size % patch_size:
            below = self.image_size // patch_size * patch_size
            near = f"{below} or {below + patch_size}" if below else f"{patch_size}"
            raise ConfigError(
                f"model.image_size={self.image_size} is not divisible by the patch size {patch_size} of {self.name}; use {near}"
            )
        width, num_heads = self.width or size.width, self.num_heads or size.num_heads
        if width % num_heads:
            raise ConfigError(f"model.width={width} is not divisible by model.num_heads={num_heads}")
        return ViTConfig(
            image_size=self.image_size,
            patch_size=patch_size,
            width=width,
            depth=self.depth or size.depth,
            mlp_dim=self.mlp_dim or (size.mlp_dim if self.width is None else 4 * width),
            num_heads=num_heads,
            num_classes=self.num_classes,
            representation_size=width if self.representation == "tanh" else None,
            dropout=self.dropout,
            head_bias=head_bias,
        )
