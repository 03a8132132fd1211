"""The settings of a Vision Transformer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.section import Section


class ModelSection(Section):
    """The Vision Transformer."""

    name: str = Field("L/16", description="size (Ti, S, B, L, H) and patch size in pixels")
    image_size: int = Field(224, ge=1, description="side of the square input in pixels; a multiple of the patch size")
    num_classes: int = Field(ge=1, description="classes of the pretraining set")
    representation: Literal["tanh", "none"] = Field("tanh", description="pre-logits layer of the pretraining head")
    dropout: float = Field(0.0, ge=0, lt=1, description="after every dense layer but qkv, and after the positions")
    width: int | None = Field(None, ge=1, description="overrides the size's width (for models of your own)")
    depth: int | None = Field(None, ge=1, description="overrides the size's number of blocks")
    mlp_dim: int | None = Field(None, ge=1, description="overrides the size's MLP width")
    num_heads: int | None = Field(None, ge=1, description="overrides the size's number of heads")
