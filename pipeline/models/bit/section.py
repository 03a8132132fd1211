"""Hold the settings of a ResNet of BiT."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from pipeline.image_size import height_and_width, image_size
from pipeline.models.base import ModelConfig
from pipeline.models.bit.layers import Variant
from pipeline.models.bit.model import BiTConfig
from pipeline.models.bit.sizes import ROOT_CHANNELS, parse_name
from pipeline.models.bit.trunk import MAX_STAGES
from pipeline.models.section import ModelSection, Side


class BiT(ModelSection):
    """Configures a ResNet with weight standardisation and group normalisation (Big Transfer, arXiv 1912.11370)."""

    family: Literal["bit"] = "bit"
    name: str = Field(default="R50x1", description="layers (26, 50, 101, 152, 200) and width factor")
    variant: Variant = Field(
        default="v2", description="v2: pre-activation, as released; v1: post-activation, as big_vision trains it"
    )
    image_size: Side | tuple[Side, Side] = Field(
        default=224, description="side of the square input in pixels, or [height, width]"
    )
    blocks: tuple[PositiveInt, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_STAGES,
        description="overrides the blocks of each stage (for models of your own)",
    )

    config_type: ClassVar[type[ModelConfig]] = BiTConfig

    @property
    def title(self) -> str:
        return f"BiT-{self.name}" if self.variant == "v2" else f"{self.name} ({self.variant})"

    @classmethod
    def settings_of(cls, config: ModelConfig) -> dict[str, Any]:
        assert isinstance(config, BiTConfig)
        return {
            "family": "bit",
            "name": f"R50x{config.width / ROOT_CHANNELS:g}",
            "variant": config.variant,
            "blocks": config.blocks,
            "image_size": config.image_size,
        }

    def resolve(self, *, head_bias: float = 0.0) -> BiTConfig:
        blocks, width = parse_name(self.name)
        return BiTConfig(
            image_size=image_size(*height_and_width(self.image_size)),
            variant=self.variant,
            blocks=self.blocks or blocks,
            width=width,
            num_classes=self.num_classes,
            head_bias=head_bias,
        )
