"""Resize the short side, then crop at random: DeiT III's simple random crop, and big_vision's `resmall_crop`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from pipeline.data.images.decode import Pixels
from pipeline.data.images.planes import Planes
from pipeline.keyed_random import few_uniforms
from pipeline.section import Section

ResizeTo = Callable[[Pixels, tuple[int, int]], Tensor]  # a whole image (H, W, 3) to (3, *size), uint8


class Simple(Section):
    """Configures a crop of nearly the whole short side (arXiv 2204.07118, section 4.3; facebookresearch/deit, `--src`).

    big_vision's `resmall_crop` of 448 and 384 is `short_side: 448, padding: 0` for an image size of 384.
    """

    name: Literal["simple"] = "simple"
    short_side: int | None = Field(
        default=None, ge=1, description="pixels to which the short side is resized; none: the image size"
    )
    padding: int = Field(default=4, ge=0, description="pixels by which each border is reflected before the crop")

    def build(self) -> SimpleCrop:
        """Return the crop."""
        return SimpleCrop(self.short_side, self.padding)


@dataclass(frozen=True)
class SimpleCrop:
    """Crops by the law that `Simple` configures."""

    short_side: int | None
    padding: int

    def __call__(self, pixels: Pixels, *, size: tuple[int, int], key: int, resize: ResizeTo) -> tuple[Planes, bool]:
        """Return the crop, (3, *size) uint8, and whether a flip was drawn.

        Args:
            pixels: (H, W, 3) uint8.
            size: height and width of the crop.
            resize: resizes the whole image.
        """
        flip, top_draw, left_draw = few_uniforms(key, 3)
        planes = resize(pixels, self.resized(*pixels.shape[:2], size=size)).numpy()
        padded = np.pad(planes, ((0, 0), (self.padding,) * 2, (self.padding,) * 2), mode="reflect") if self.padding else planes
        top = int(top_draw * (padded.shape[1] - size[0] + 1))
        left = int(left_draw * (padded.shape[2] - size[1] + 1))
        return padded[:, top : top + size[0], left : left + size[1]], flip < 0.5

    def resized(self, height: int, width: int, *, size: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width to which an image is resized: it covers the crop, or `short_side` / min(size) of it.

        The long side is cut to whole pixels, as in torchvision. It never becomes smaller than the crop.
        """
        short = max(min(size), self.short_side or 0)
        wanted = (size[0] * short // min(size), size[1] * short // min(size))
        if wanted[0] * width >= wanted[1] * height:
            return wanted[0], max(wanted[0] * width // height, size[1])
        return max(wanted[1] * height // width, size[0]), wanted[1]
