"""Hold what fixes an encoder over patches: its sizes, and the choices that published ViTs differ in (docs/models.md)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Literal

from pipeline.image_size import ImageSize
from pipeline.models.base import ModelConfig, PatchLayout

Pooling = Literal["class_token", "gap", "map"]
Position = Literal["learned_1d", "none", "learned_2d", "sincos_2d", "relative"]
PositionAt = Literal["stem", "every_layer", "shared"]
Gelu = Literal["exact", "tanh"]
StochasticDepthRule = Literal["linear", "uniform"]

LEARNED: tuple[Position, ...] = ("learned_1d", "learned_2d")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(ModelConfig):
    """Holds everything that fixes the weights of an encoder over patches. Widths are in channels, lengths in pixels.

    Attributes:
        layer_scale: what the factors of the residual branches begin at; None: there are none.
        registers: tokens that are neither patches nor read by the head.
        stochastic_depth: probability that a sample skips a residual branch, of the last block by the rule `linear`.
    """

    image_size: ImageSize
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_classes: int
    representation_size: int | None
    dropout: float
    head_bias: float = 0.0
    # The first weights files lack these. The defaults are what those models do.
    pooling: Pooling = "class_token"
    position: Position = "learned_1d"
    position_at: PositionAt = "stem"
    position_class_token: bool = True
    gelu: Gelu = "exact"
    qkv_bias: bool = True
    qk_norm: bool = False
    layer_scale: float | None = None
    registers: int = field(default=0, metadata={"least": 0})
    stochastic_depth: float = 0.0
    stochastic_depth_rule: StochasticDepthRule = "linear"

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """Return rows and columns of patches."""

    @property
    def num_patches(self) -> int:
        rows, columns = self.grid
        return rows * columns

    @property
    def patches(self) -> PatchLayout:
        return PatchLayout(*self.grid, width=self.width)

    @property
    def has_class_token(self) -> bool:
        return self.pooling == "class_token"

    @property
    def class_token_has_position(self) -> bool:
        return self.has_class_token and self.position_class_token and self.position in LEARNED

    @property
    def num_prefix_tokens(self) -> int:
        """Return the number of tokens in front of the patches: the class token, then the registers."""
        return self.has_class_token + self.registers

    @property
    def num_tokens(self) -> int:
        return self.num_prefix_tokens + self.num_patches


def conflict_of(config: EncoderConfig) -> str | None:
    """Return why no model has these choices together, as a message about settings; None if one can."""
    if config.width % config.num_heads:
        return f"model.width={config.width} is not divisible by model.num_heads={config.num_heads}"
    for name in ("dropout", "stochastic_depth"):
        if not 0 <= getattr(config, name) < 1:
            return f"model.{name}={getattr(config, name)} is not in [0, 1)"
    if config.pooling == "map" and config.representation_size is not None:
        return "model.pooling=map has a hidden layer of its own, so it takes no pre-logits; set model.representation=none"
    return _position_conflict(config)


def _position_conflict(config: EncoderConfig) -> str | None:
    position, at, width = config.position, config.position_at, config.width
    if position == "learned_2d" and width % 2:
        return f"model.position=learned_2d gives half of the width to each axis, but model.width={width} is odd"
    if position == "sincos_2d" and (width % 4 or width < 8):
        return f"model.position=sincos_2d needs a width that is a multiple of 4 and at least 8, not model.width={width}"
    if at != "stem" and position == "none":
        return f"model.position_at={at} says where positions are added, but model.position=none has none; leave one of them out"
    if at != "stem" and position == "relative":
        return f"model.position=relative acts inside every layer's attention; leave model.position_at={at} out"
    if at == "every_layer" and position == "sincos_2d":
        return (
            "model.position=sincos_2d learns nothing, so no layer has its own; set model.position_at=shared to add it to each"
        )
    return None
