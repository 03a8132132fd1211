"""Hold the settings of a backbone of timm."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.errors import ConfigError
from pipeline.image_size import describe_size, height_and_width, image_size
from pipeline.models.base import ModelConfig
from pipeline.models.section import ModelSection, Side
from pipeline.models.timm.library import RESERVED, check_name, default_size, installed_version, reason_of
from pipeline.models.timm.model import HALF, TimmConfig, freeze, thaw

Part = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(gt=0, le=1)]


class Timm(ModelSection):
    """Configures a backbone of the library timm."""

    family: Literal["timm"] = "timm"
    name: str = Field(default="swin_large_patch4_window7_224", description="architecture, as timm.list_models() names it")
    image_size: Side | tuple[Side, Side] | None = Field(
        default=None, description="side of the square input in pixels, or [height, width]; if not given: the model's own"
    )
    options: dict[str, Any] = Field(default={}, description="passed on to timm.create_model: {drop_path_rate: 0.1}")

    mean: tuple[Part, Part, Part] = Field(
        default=HALF, description="of the pixels, as parts of 255: ImageNet's is [0.485, 0.456, 0.406]"
    )
    std: tuple[Deviation, Deviation, Deviation] = Field(
        default=HALF, description="deviation of the pixels: ImageNet's is [0.229, 0.224, 0.225]"
    )

    config_type: ClassVar[type[ModelConfig]] = TimmConfig

    @property
    def title(self) -> str:
        return self.name

    @classmethod
    def settings_of(cls, config: ModelConfig) -> dict[str, Any]:
        assert isinstance(config, TimmConfig)
        return {
            "family": "timm",
            "name": config.name,
            "options": thaw(config.options),
            "mean": config.mean,
            "std": config.std,
            "image_size": config.image_size,
        }

    def resolve(self, *, head_bias: float = 0.0) -> TimmConfig:
        check_name(self.name)
        if forbidden := sorted(RESERVED & self.options.keys()):
            raise ConfigError(
                f"model.options.{forbidden[0]} is not a setting: weights begin random, on images of three channels and of "
                "model.image_size, with model.num_classes classes"
            )
        try:
            options = freeze(self.options)
        except ValueError as error:
            raise ConfigError(f"model.options: {error}; use numbers, texts, and lists of them") from error
        size = default_size(self.name) if self.image_size is None else height_and_width(self.image_size)
        config = TimmConfig(
            name=self.name,
            image_size=image_size(*size),
            options=options,
            timm_version=installed_version(),
            num_classes=self.num_classes,
            head_bias=head_bias,
            mean=self.mean,
            std=self.std,
        )
        _try(config)
        return config


def _try(config: TimmConfig) -> None:
    """Run the model on an image without pixels.

    Raises:
        ConfigError: timm cannot make it, or it does not take the size.
    """
    try:
        config.cost.macs  # noqa: B018  (counting runs it)
    except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError) as error:
        size = describe_size(config.image_size)
        raise ConfigError(f"model.name={config.name} does not run on images of {size}: {reason_of(error)}") from error
