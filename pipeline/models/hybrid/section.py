"""Hold the settings of a hybrid."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from pipeline.errors import ConfigError
from pipeline.models.base import ModelConfig
from pipeline.models.bit.layers import GROUPS
from pipeline.models.bit.sizes import ROOT_CHANNELS
from pipeline.models.bit.trunk import MAX_STAGES
from pipeline.models.hybrid.model import HybridConfig
from pipeline.models.hybrid.sizes import name_of, parse_name
from pipeline.models.vit.encoder_config import conflict_of
from pipeline.models.vit.encoder_section import EncoderSection


class Hybrid(EncoderSection):
    """Configures the encoder of ViT on the feature map of a ResNet."""

    family: Literal["hybrid"] = "hybrid"
    name: str = Field(
        default="R50+B/16", description="R and layers of the ResNet (none: its root), + and encoder size, /16 or /32"
    )
    blocks: tuple[PositiveInt, ...] | None = Field(
        default=None, min_length=1, max_length=MAX_STAGES, description="overrides the ResNet's blocks of each stage"
    )
    root_width: int = Field(
        default=ROOT_CHANNELS,
        ge=GROUPS,
        multiple_of=GROUPS,
        description="channels of the ResNet's root; its stages have 4, 8, ... times more",
    )

    config_type: ClassVar[type[ModelConfig]] = HybridConfig

    @property
    def title(self) -> str:
        return self.name

    @classmethod
    def settings_of(cls, config: ModelConfig) -> dict[str, Any]:
        assert isinstance(config, HybridConfig)
        return {
            "family": "hybrid",
            "name": name_of(config.blocks, config.patch_size, width=config.width),
            "blocks": config.blocks or None,
            "root_width": config.root_width,
            **cls.encoder_settings_of(config),
        }

    def resolve(self, *, head_bias: float = 0.0) -> HybridConfig:
        size = parse_name(self.name)
        config = HybridConfig(
            blocks=self.blocks or size.blocks,
            root_width=self.root_width,
            patch_size=size.patch_size,
            **self.encoder_settings(size.encoder, head_bias=head_bias),
        )
        self.check_sides(config.stride, what=f"the {config.stride} pixels of a token of {self.name}")
        if (conflict := conflict_of(config)) is not None:
            raise ConfigError(conflict)
        return config
