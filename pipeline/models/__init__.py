"""Join the model families in one union. Each family has one folder, and its name below."""

from typing import Annotated, Any

from pipeline.models.base import ModelConfig
from pipeline.models.bit.section import BiT
from pipeline.models.hybrid.section import Hybrid
from pipeline.models.section import ModelSection
from pipeline.models.timm.section import Timm
from pipeline.models.vit.section import ViT
from pipeline.section import OneOf, members_of

Model = Annotated[ViT | BiT | Hybrid | Timm, OneOf("family", default="vit")]


def settings_of(config: ModelConfig) -> dict[str, Any]:
    """Return the settings that make a model of this configuration, `model.family` among them.

    Those of its classes, and of how it is trained (dropout, stochastic depth), are not among them.

    Raises:
        ValueError: no settings make such a model.
    """
    section = members_of(Model)[config.family]
    assert issubclass(section, ModelSection)
    return section.settings_of(config)


def config_from_dict(family: str, values: Any) -> ModelConfig:
    """Return a model's configuration from a file's values.

    Raises:
        ValueError: an unknown family, or values that describe none of its models.
    """
    section = members_of(Model).get(family)
    if section is None or not issubclass(section, ModelSection):
        raise ValueError(f"the model family {family[:40]!r} is unknown here")
    return section.config_type.from_dict(values)
