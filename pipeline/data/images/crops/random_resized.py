"""Draw the crop of torchvision's RandomResizedCrop, which timm and DeiT share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from pipeline.data.images.crops.boxes import BoxLaw, CropBounds
from pipeline.data.images.planes import Box
from pipeline.section import Section


class RandomResized(Section):
    """Configures torchvision's crop: uniform area, log-uniform ratio, by data.min_area, max_area, min_ratio and max_ratio."""

    name: Literal["random_resized"] = "random_resized"

    def build(self) -> RandomResizedLaw:
        """Return the crop."""
        return RandomResizedLaw()


class RandomResizedLaw(BoxLaw):
    """Draws the area uniformly, the ratio log-uniformly, and then the place (torchvision 0.28, transforms.RandomResizedCrop).

    After ten attempts that do not fit, the largest centred crop with the nearest allowed ratio is taken.
    """

    attempts: ClassVar[int] = 10

    def draw(self, height: int, width: int, *, bounds: CropBounds, draws: Sequence[float]) -> Box | None:
        """Try once.

        Args:
            draws: area, ratio, top, left.
        """
        area = height * width * (bounds.min_area + draws[0] * (bounds.max_area - bounds.min_area))
        low, high = math.log(bounds.min_ratio), math.log(bounds.max_ratio)
        ratio = math.exp(low + draws[1] * (high - low))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if not 0 < crop_width <= width or not 0 < crop_height <= height:
            return None
        top = int(draws[2] * (height - crop_height + 1))
        left = int(draws[3] * (width - crop_width + 1))
        return Box(top=top, left=left, height=crop_height, width=crop_width)

    def last(self, height: int, width: int, *, bounds: CropBounds) -> Box:
        ratio = width / height
        crop_height, crop_width = height, width
        if ratio < bounds.min_ratio:
            crop_height = max(1, round(width / bounds.min_ratio))
        elif ratio > bounds.max_ratio:
            crop_width = max(1, round(height * bounds.max_ratio))
        return Box(top=(height - crop_height) // 2, left=(width - crop_width) // 2, height=crop_height, width=crop_width)
