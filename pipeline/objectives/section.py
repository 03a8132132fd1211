"""The settings of the objective."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.section import Section


class LossSection(Section):
    """What is minimised."""

    name: Literal["sigmoid", "softmax"] = Field("sigmoid", description="sigmoid for ImageNet-21k and JFT (overlapping classes)")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
