"""Decode masks of classes: an image whose pixels are class numbers, as segmentation sets have them."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.images.decode import MAX_PIXELS, UnreadableImage
from pipeline.image_size import ImageSize, height_and_width

IGNORED = 255  # the pixel's class is not known: PASCAL VOC's borders, and ADE20K's and Cityscapes' rest as most tools write it
FORMATS = ("PNG", "TIFF")  # nothing lossy: its class numbers would be others

Mask = NDArray[np.uint8]  # (H, W)


def decode_mask(data: bytes) -> Mask:
    """Decode class numbers (H, W): grey values, or indices into a palette, whose colours do not count.

    Raises:
        UnreadableImage: it is damaged, too large, has class numbers above 255, or its pixels are colours.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UnreadableImage(f"mask of {image.width} x {image.height} pixels, more than {MAX_PIXELS}")
                if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
                    raise UnreadableImage(
                        f"the mask's pixels are colours (mode {image.mode}), not class numbers: write one number a pixel, "
                        "as grey values or with a palette"
                    )
                values = np.asarray(image)
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise UnreadableImage(f"mask: {type(error).__name__}: {error}") from error
    if values.size and (values.min() < 0 or values.max() > IGNORED):
        raise UnreadableImage(f"the mask has class number {int(values.max())}; at most {IGNORED - 1} can be told apart")
    return values.astype(np.uint8)


def resize_mask(mask: Mask, size: ImageSize) -> Mask:
    """Resize class numbers (H, W) to (*size) by the nearest pixel, at the centres of the new pixels."""
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
        for new, old in zip(height_and_width(size), mask.shape, strict=True)
    )
    return mask[rows[:, None], columns[None, :]]
