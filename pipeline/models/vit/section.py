"""Hold the settings of a Vision Transformer."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from pipeline.errors import ConfigError
from pipeline.models.base import ModelConfig
from pipeline.models.vit.encoder_config import conflict_of
from pipeline.models.vit.encoder_section import EncoderSection
from pipeline.models.vit.model import ViTConfig
from pipeline.models.vit.sizes import nearest_size, parse_name


class ViT(EncoderSection):
    """Configures the Vision Transformer."""

    family: Literal["vit"] = "vit"
    name: str = Field(default="L/16", description="size (Ti, S, B, L, H) and patch size in pixels")

    config_type: ClassVar[type[ModelConfig]] = ViTConfig

    @property
    def title(self) -> str:
        return f"ViT-{self.name}"

    @classmethod
    def settings_of(cls, config: ModelConfig) -> dict[str, Any]:
        assert isinstance(config, ViTConfig)
        return {
            "family": "vit",
            "name": f"{nearest_size(config.width)}/{config.patch_size}",
            **cls.encoder_settings_of(config),
        }

    def resolve(self, *, head_bias: float = 0.0) -> ViTConfig:
        size, patch_size = parse_name(self.name)
        self.check_sides(patch_size, what=f"the patch size {patch_size} of {self.name}")
        config = ViTConfig(patch_size=patch_size, **self.encoder_settings(size, head_bias=head_bias))
        if (conflict := conflict_of(config)) is not None:
            raise ConfigError(conflict)
        return config
