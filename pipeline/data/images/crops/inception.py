"""Draw the Inception crop, the default. `TrainTransform` decodes no more than such a crop needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from pipeline.data.images.crops.boxes import BoxLaw, CropBounds
from pipeline.data.images.planes import Box
from pipeline.section import Section


class Inception(Section):
    """Configures a rectangle of random area and ratio, by data.min_area, max_area, min_ratio and max_ratio."""

    name: Literal["inception"] = "inception"

    def build(self) -> InceptionLaw:
        """Return the crop."""
        return InceptionLaw()


class InceptionLaw(BoxLaw):
    """Draws boxes by `inception_box`; after a hundred that do not fit the whole image is taken."""

    attempts: ClassVar[int] = 100

    def draw(self, height: int, width: int, *, bounds: CropBounds, draws: Sequence[float]) -> Box | None:
        return inception_box(height, width, bounds=bounds, draws=draws)

    def last(self, height: int, width: int, *, bounds: CropBounds) -> Box:
        del bounds
        return Box(top=0, left=0, height=height, width=width)


def inception_box(height: int, width: int, *, bounds: CropBounds, draws: Sequence[float]) -> Box | None:
    """Try once to draw a random crop by the law of `tf.image.sample_distorted_bounding_box`, the authors' crop.

    The aspect ratio is uniform, then the crop's height is uniform among those whose area is allowed. A crop that does not fit
    is refused and drawn again, and after `InceptionLaw.attempts` the whole image is used.

    There is one difference: TensorFlow never draws the last possible position of a crop; here every position is equally likely.

    Args:
        draws: four numbers in [0, 1): ratio, height, top, left.
    """
    ratio = bounds.min_ratio + draws[0] * (bounds.max_ratio - bounds.min_ratio)
    min_area, max_area = bounds.min_area * height * width, bounds.max_area * height * width
    lowest = round(math.sqrt(min_area / ratio))
    highest = min(round(math.sqrt(max_area / ratio)), height, math.floor((width + 0.5 - 1e-7) / ratio))
    lowest = min(lowest, highest)
    crop_height = lowest + int(draws[1] * (highest - lowest + 1))
    crop_width = round(crop_height * ratio)
    # Rounding to whole pixels may leave the allowed range by a little. One row more or less may fix it.
    if crop_height * crop_width < min_area:
        crop_height += 1
    elif crop_height * crop_width > max_area:
        crop_height -= 1
    crop_width = round(crop_height * ratio)
    allowed = min_area <= crop_height * crop_width <= max_area
    if not allowed or not 1 <= crop_height <= height or not 1 <= crop_width <= width:
        return None
    top = int(draws[2] * (height - crop_height + 1))
    left = int(draws[3] * (width - crop_width + 1))
    return Box(top=top, left=left, height=crop_height, width=crop_width)
