"""Erase at random: a rectangle of the image is overwritten, after everything else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.data.images.planes import Box, Planes
from pipeline.keyed_random import derive_key, few_uniforms, uniforms
from pipeline.section import Section

ATTEMPTS = 10
DRAWS_PER_ATTEMPT = 4  # area, ratio, top, left
ErasingFill = Literal["mean", "color", "noise"]

# timm erases after normalising: its 0 is the mean of ImageNet here, its 1 the standard deviation.
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406])[:, None, None] * 255
IMAGENET_STD = np.array([0.229, 0.224, 0.225])[:, None, None] * 255


class RandomErasing(Section):
    """Configures Zhong et al. 2017 (arXiv 1708.04896) by the law of timm/data/random_erasing.py, one rectangle an image."""

    probability: float = Field(
        default=0.0, ge=0, le=1, description="part of the images with a rectangle erased; timm's --reprob"
    )
    min_area: float = Field(default=0.02, gt=0, le=1, description="smallest rectangle, as a part of the image")
    max_area: float = Field(default=1 / 3, gt=0, le=1, description="largest rectangle")
    ratio: float = Field(default=0.3, gt=0, le=1, description="smallest height / width; the largest is its inverse")
    fill: ErasingFill = Field(
        default="noise",
        description="noise: each pixel a normal number by ImageNet's mean and deviation, cut to 0..255 (timm's --remode "
        "pixel); color: one such colour for all (rand); mean: ImageNet's mean (const)",
    )

    @model_validator(mode="after")
    def _areas(self) -> Self:
        if self.min_area > self.max_area:
            raise ValueError("min_area must not exceed max_area")
        return self

    def build(self) -> Erasing | None:
        """Return the law; None where no image is erased."""
        if self.probability == 0:
            return None
        return Erasing(self.probability, self.min_area, self.max_area, self.ratio, self.fill)


@dataclass(frozen=True)
class Erasing:
    """Erases by the law that `RandomErasing` configures."""

    probability: float
    min_area: float
    max_area: float
    ratio: float
    fill: ErasingFill

    def __call__(self, planes: Planes, *, key: int) -> None:
        """Erase in place, (3, H, W) uint8, with the random numbers of a key."""
        if few_uniforms(key, 1)[0] >= self.probability:
            return
        rectangle = self.choose(*planes.shape[1:], draws=few_uniforms(key, 1 + DRAWS_PER_ATTEMPT * ATTEMPTS))
        if rectangle is not None:
            rows = slice(rectangle.top, rectangle.top + rectangle.height)
            columns = slice(rectangle.left, rectangle.left + rectangle.width)
            planes[:, rows, columns] = self._pixels(rectangle, key=derive_key(key, 1))

    def choose(self, height: int, width: int, *, draws: list[float]) -> Box | None:
        """Return the rectangle of an image; None if it is spared, or if none of the attempts fits into it."""
        if draws[0] >= self.probability:
            return None
        for attempt in range(ATTEMPTS):
            area_draw, ratio_draw, top, left = draws[1 + DRAWS_PER_ATTEMPT * attempt : 1 + DRAWS_PER_ATTEMPT * (attempt + 1)]
            area = (self.min_area + area_draw * (self.max_area - self.min_area)) * height * width
            ratio = math.exp((1 - 2 * ratio_draw) * math.log(self.ratio))
            tall, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if tall < height and wide < width:
                return Box(int(top * (height - tall + 1)), int(left * (width - wide + 1)), tall, wide)
        return None

    def _pixels(self, rectangle: Box, *, key: int) -> NDArray[np.uint8]:
        normal = np.zeros((3, 1, 1))
        if self.fill != "mean":
            size = (1, 1) if self.fill == "color" else (rectangle.height, rectangle.width)
            normal = normals(key, 3 * size[0] * size[1]).reshape(3, *size)
        return np.clip(np.round(IMAGENET_MEAN + IMAGENET_STD * normal), 0, 255).astype(np.uint8)


def normals(key: int, count: int) -> NDArray[np.float64]:
    """Return standard normal numbers under a key (Box and Muller 1958)."""
    radius, angle = uniforms(key, 2 * count).reshape(2, count)
    return np.sqrt(-2 * np.log(1 - radius)) * np.cos(2 * np.pi * angle)
