"""Model families: one folder each, and its name in the union below."""

from typing import Annotated, Any

from pipeline.models.base import ModelConfig
from pipeline.models.bit.section import BiT
from pipeline.models.hybrid.section import Hybrid
from pipeline.models.section import ModelSection
from pipeline.models.timm.section import Timm
from pipeline.models.vit.section import ViT
from pipeline.section import OneOf, members_of

Model = Annotated[ViT | BiT | Hybrid | Timm, OneOf("family", default="vit")]


def config_from_dict(family: str, values: Any) -> ModelConfig:
    """A model's configuration from a file.

    Raises:
        ValueError: an unknown family, or values that describe none of its models.
    """
    section = members_of(Model).get(family)
    if section is None or not issubclass(section, ModelSection):
        raise ValueError(f"the model family {family[:40]!r} is unknown here")
    return section.config_type.from_dict(values)
