"""Augment nothing after crop and flip: the paper's recipe."""

from __future__ import annotations

from typing import Literal

from pipeline.data.images.augment.base import AugmentSection


class NoAugment(AugmentSection):
    """Applies crop and flip alone."""

    name: Literal["none"] = "none"

    def build(self) -> None:
        return None
