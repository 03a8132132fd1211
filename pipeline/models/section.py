"""Hold the settings that every model family has."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, ClassVar

from pydantic import Field

from pipeline.models.base import ModelConfig
from pipeline.section import Section

Side = Annotated[int, Field(ge=1)]  # side of an image, in pixels


class ModelSection(Section):
    """Configures a model of any family."""

    num_classes: int = Field(ge=1, description="classes of the pretraining set")

    config_type: ClassVar[type[ModelConfig]]  # what `resolve` returns, for files that hold one

    @property
    @abstractmethod
    def title(self) -> str:
        """Return what people call the model."""

    @classmethod
    @abstractmethod
    def settings_of(cls, config: ModelConfig) -> dict[str, Any]:
        """Return the settings that make a model of this configuration, but for its classes and how it is trained.

        Raises:
            ValueError: no settings make such a model.
        """

    @abstractmethod
    def resolve(self, *, head_bias: float = 0.0) -> ModelConfig:
        """Return the configuration of the model that the settings describe.

        Args:
            head_bias: what the classifier's biases begin at.

        Raises:
            ConfigError: an unknown name, or sizes that do not fit together.
        """
