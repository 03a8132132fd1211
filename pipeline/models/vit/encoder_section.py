"""Hold the settings of an encoder over patches, which every family that has one shares."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from pipeline.errors import ConfigError
from pipeline.image_size import height_and_width, image_size
from pipeline.models.section import ModelSection, Side
from pipeline.models.vit.encoder_config import EncoderConfig, Gelu, Pooling, Position, PositionAt, StochasticDepthRule
from pipeline.models.vit.sizes import EncoderSize


class EncoderSection(ModelSection):
    """Configures what follows the patch embedding, and the images."""

    image_size: Side | tuple[Side, Side] = Field(
        default=224, description="side of the square input in pixels, or [height, width]; multiples of a token's pixels"
    )
    representation: Literal["tanh", "none"] = Field(default="tanh", description="pre-logits layer of the pretraining head")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="rate after every dense layer but qkv, and after the positions")
    width: int | None = Field(default=None, ge=1, description="overrides the size's width (for models of your own)")
    depth: int | None = Field(default=None, ge=1, description="overrides the size's number of blocks")
    mlp_dim: int | None = Field(default=None, ge=1, description="overrides the size's MLP width")
    num_heads: int | None = Field(default=None, ge=1, description="overrides the size's number of heads")
    pooling: Pooling = Field(
        default="class_token",
        description="what the head reads: a class token; gap: the patches' mean; map: attention pooling over the patches",
    )
    position: Position = Field(
        default="learned_1d",
        description="how a patch has one: learned by index, by row and column (2d), fixed waves, offsets (relative); or none",
    )
    position_at: PositionAt = Field(
        default="stem", description="positions are added at the stem; or before every layer: each layer's own, or shared"
    )
    position_class_token: bool = Field(
        default=True, description="the class token has a learned position too; false: patches alone"
    )
    gelu: Gelu = Field(default="exact", description="tanh: the approximation, as in JAX")
    qkv_bias: bool = Field(default=True, description="queries, keys and values have biases")
    qk_norm: bool = Field(default=False, description="LayerNorm on each head's queries and keys")
    layer_scale: float | None = Field(
        default=None, description="learned factors on residual branches begin at this; none: no factors"
    )
    registers: int = Field(default=0, ge=0, description="extra tokens that the head does not read")
    stochastic_depth: float = Field(
        default=0.0, ge=0, lt=1, description="rate at which a sample skips a residual branch in training"
    )
    stochastic_depth_rule: StochasticDepthRule = Field(
        default="linear", description="the rate grows linearly from 0 to the last block's, or is uniform"
    )

    def encoder_settings(self, size: EncoderSize, *, head_bias: float) -> dict[str, Any]:
        """Return the fields of `EncoderConfig`, from the settings and the sizes that the model's name says."""
        width = self.width or size.width
        return {
            "image_size": image_size(*height_and_width(self.image_size)),
            "width": width,
            "depth": self.depth or size.depth,
            "mlp_dim": self.mlp_dim or (size.mlp_dim if self.width is None else 4 * width),
            "num_heads": self.num_heads or size.num_heads,
            "num_classes": self.num_classes,
            "representation_size": width if self.representation == "tanh" else None,
            "dropout": self.dropout,
            "head_bias": head_bias,
            "pooling": self.pooling,
            "position": self.position,
            "position_at": self.position_at,
            "position_class_token": self.position_class_token,
            "gelu": self.gelu,
            "qkv_bias": self.qkv_bias,
            "qk_norm": self.qk_norm,
            "layer_scale": self.layer_scale,
            "registers": self.registers,
            "stochastic_depth": self.stochastic_depth,
            "stochastic_depth_rule": self.stochastic_depth_rule,
        }

    @staticmethod
    def encoder_settings_of(config: EncoderConfig) -> dict[str, Any]:
        """Return the settings of an encoder, but for its classes and how it is trained."""
        names = (
            "width", "depth", "mlp_dim", "num_heads", "pooling", "position", "position_at", "position_class_token", "gelu",
            "qkv_bias", "qk_norm", "layer_scale", "registers",
        )  # fmt: skip
        representation = "none" if config.representation_size is None else "tanh"
        return {
            "image_size": config.image_size,
            "representation": representation,
            **{name: getattr(config, name) for name in names},
        }

    def check_sides(self, pixels: int, *, what: str) -> None:
        """Refuse images that tokens do not cover.

        Args:
            pixels: to a token, on each side.
            what: has so many, in words.

        Raises:
            ConfigError: a side is no multiple.
        """
        sides = height_and_width(self.image_size)
        for name, side in zip(("height", "width"), sides, strict=True):
            if side % pixels == 0:
                continue
            below = side // pixels * pixels
            near = f"{below} or {below + pixels}" if below else f"{pixels}"
            which = f"{side} is" if isinstance(self.image_size, int) else f"{list(sides)}: its {name} is"
            raise ConfigError(f"model.image_size={which} not divisible by {what}; use {near}")
