"""Crop and resize images: at random for training, centred for evaluation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.images.augment.base import Augmentation
from pipeline.data.images.crops.boxes import BoxLaw, CropBounds
from pipeline.data.images.crops.inception import InceptionLaw
from pipeline.data.images.crops.simple import SimpleCrop
from pipeline.data.images.decode import Pixels, decode_image, decode_jpeg_crop, jpeg_size
from pipeline.data.images.erasing import Erasing
from pipeline.data.images.planes import Box
from pipeline.image_size import ImageSize, height_and_width
from pipeline.keyed_random import Purpose, derive_key, few_uniforms

Resize = Literal["bilinear", "bilinear_antialias", "bicubic_antialias"]
Decoder = Literal["region", "whole"]
Aspect = Literal["keep", "stretch"]


@dataclass(frozen=True)
class TrainTransform:
    """Crops, resizes, flips half of all images, then augments as the settings say.

    The ratios are those of the crop in the image, whatever the ratio of the size that it is resized to.
    """

    image_size: ImageSize
    bounds: CropBounds
    flip: bool
    resize: Resize
    decoder: Decoder
    shrink_margin: float | None = None  # see `DataSection`
    crop: BoxLaw | SimpleCrop = InceptionLaw()  # noqa: RUF009  (it has no state)
    augmentation: Augmentation | None = None
    erasing: Erasing | None = None

    def __call__(self, data: bytes, *, seed: int, epoch: int, sample_id: int, out: Tensor, draw: int = 0) -> None:
        """Decode, crop, resize, flip and augment an encoded image into `out`, (3, H, W) uint8.

        The same (data, seed, epoch, sample_id, draw) always gives the same pixels.

        Args:
            draw: number of the sample's appearance in the epoch.

        Raises:
            UnreadableImage: it cannot be decoded.
        """
        self._crop(data, key=derive_key(seed, Purpose.AUGMENTATION, epoch, sample_id, *([draw] if draw else [])), out=out)
        planes = out.numpy()
        if self.augmentation is not None:
            key = derive_key(seed, Purpose.OPERATIONS, epoch, sample_id, draw)
            planes[...] = self.augmentation(planes, few_uniforms(key, self.augmentation.num_draws))
        if self.erasing is not None:
            self.erasing(planes, key=derive_key(seed, Purpose.ERASING, epoch, sample_id, draw))

    def _crop(self, data: bytes, *, key: int, out: Tensor) -> None:
        if isinstance(self.crop, SimpleCrop):
            planes, flip = self.crop(decode_image(data), size=(out.shape[1], out.shape[2]), key=key, resize=self._resize_whole)
            out.numpy()[...] = planes[..., ::-1] if flip and self.flip else planes
            return
        size = jpeg_size(data) if self.decoder == "region" and self.resize != "bicubic_antialias" else None
        if size is not None:
            box, flip = self.crop.choose(*size, bounds=self.bounds, key=key)
            if decode_jpeg_crop(
                data,
                box=box,
                shrink=self._shrink(box),
                flip=flip and self.flip,
                antialias=self.resize == "bilinear_antialias",
                out=out.numpy(),
            ):
                return
        pixels = decode_image(data)
        box, flip = self.crop.choose(*pixels.shape[:2], bounds=self.bounds, key=key)
        image = resize_box(pixels, box, size=height_and_width(self.image_size), resize=self.resize)
        out.copy_(image.flip(-1) if flip and self.flip else image)

    def _resize_whole(self, pixels: Pixels, size: tuple[int, int]) -> Tensor:
        height, width = pixels.shape[:2]
        return resize_box(pixels, Box(top=0, left=0, height=height, width=width), size=size, resize=self.resize)

    def _shrink(self, box: Box) -> int:
        if self.shrink_margin is None or self.resize != "bilinear_antialias":  # without antialiasing, other pixels are intended
            return 1
        height, width = height_and_width(self.image_size)
        spare = min(box.height / (height * self.shrink_margin), box.width / (width * self.shrink_margin))
        return next((shrink for shrink in (8, 4, 2) if spare >= shrink), 1)


@dataclass(frozen=True)
class EvalTransform:
    """Resizes the short side, then crops the centre: the authors' evaluation (short side 256, crop 224).

    Of a size that is no square, the image is made to cover that size times `short_side` / the size's own short side. With
    `aspect` "stretch" every image is resized to just that area, whatever its ratio: big_vision's `resize(256)`.
    """

    image_size: ImageSize
    short_side: int
    resize: Resize = "bilinear_antialias"
    aspect: Aspect = "keep"

    def __call__(self, pixels: Pixels) -> Tensor:
        """Map any (H, W, 3) to (3, *image_size), both uint8."""
        height, width = pixels.shape[:2]
        size = self._resized(height, width)
        image = resize_box(pixels, Box(top=0, left=0, height=height, width=width), size=size, resize=self.resize)
        crop_height, crop_width = height_and_width(self.image_size)
        top, left = (size[0] - crop_height) // 2, (size[1] - crop_width) // 2
        return image[:, top : top + crop_height, left : left + crop_width]

    def showing_all(self) -> EvalTransform:
        """Return the transform that shows whole images: each is resized to the model's size, whatever its ratio."""
        return replace(self, short_side=min(height_and_width(self.image_size)), aspect="stretch")

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the size that an image is resized to before the crop."""
        crop_height, crop_width = height_and_width(self.image_size)
        short = min(crop_height, crop_width)
        covered = self.short_side * crop_height / short, self.short_side * crop_width / short
        scale = max(covered[0] / height, covered[1] / width)
        wanted = (height * scale, width * scale) if self.aspect == "keep" else covered
        return max(crop_height, round(wanted[0])), max(crop_width, round(wanted[1]))


def resize_box(pixels: Pixels, box: Box, *, size: tuple[int, int], resize: Resize) -> Tensor:
    """Cut `box` out of (H, W, 3) and resize it to (3, *size), uint8 throughout."""
    cut = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    image = torch.from_numpy(np.ascontiguousarray(cut)).permute(2, 0, 1).unsqueeze(0)  # (1, 3, h, w), channels last
    if (box.height, box.width) == size:
        return image[0]
    mode, _, antialias = resize.partition("_")
    return F.interpolate(image, size=size, mode=mode, antialias=antialias == "antialias")[0]
