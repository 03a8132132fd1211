"""Choose the Inception crop, the default, which `TrainTransform` makes itself: it decodes no more than the crop needs."""

from __future__ import annotations

from typing import Literal

from pipeline.section import Section


class Inception(Section):
    """Configures a rectangle of random area and ratio, by data.min_area, max_area, min_ratio and max_ratio."""

    name: Literal["inception"] = "inception"

    def build(self) -> None:
        """Return no other crop."""
        return
