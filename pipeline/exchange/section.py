"""Hold the settings of a training that begins with weights of another."""

from __future__ import annotations

from pydantic import Field

from pipeline.exchange.initial import Head
from pipeline.models.vit.position import PositionResize
from pipeline.section import Section


class InitSection(Section):
    """Configures how initial weights (`init_from`) become those of this run's model."""

    head: Head = Field(
        default="auto", description="auto: classifier and pre-logits are taken where their sizes are the same; new: never"
    )
    positions: PositionResize = Field(
        default="corners_aligned_bilinear",
        description="how learned positions are resized to another grid: as the authors' code does, or as timm's",
    )
