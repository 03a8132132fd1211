"""Compute perceptual hashes of an image, of its mirror image and of its parts: near-copies of each other differ in few bits.

The hash is pHash (Zauner 2010): the signs, about their median, of the lowest 12 x 12 frequencies of the grey image, 144 bits,
as `imagehash.phash(image, hash_size=12)` has them. The hash is insensitive to rescaling and recompression but sensitive to
cropping, so parts of the image are hashed too: a copy that lost a tenth matches one of them. The hash is also insensitive to
colour, and simple pictures (a bird in the sky, a nail on white) have similar hashes. So the colours of 3 x 3 fields are stored
with the bits of each part.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HASH_SIDE = 12
HASH_BYTES = HASH_SIDE**2 // 8
VIEW_SIDE = 4 * HASH_SIDE  # pixels that a part is shrunk to before its frequencies are taken
COLOUR_SIDE = 3  # fields
THUMBNAIL_SIDE = 128  # parts are cut out of this
COLOUR_SHRINK = 4  # the colours are cut out of a thumbnail that is smaller by this factor
NUM_FRAMES = 2
VIEW_BYTES = HASH_BYTES + 3 * COLOUR_SIDE**2
MIN_DETAIL = 0.1  # grey levels

Views = NDArray[np.uint8]  # (..., VIEW_BYTES): the bits of a part, then its colours

MIRROR = np.where(np.arange(HASH_SIDE) % 2, -1.0, 1.0)  # odd horizontal frequencies change their sign


class Box(NamedTuple):
    """Locates a part of an image, in fractions of its width and height."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class ImageHashes:
    """Holds all hashes of one image."""

    frames: Views  # (2, 45): the whole, and its middle square, which is how most test sets are cut
    mirrored: Views  # (2, 45): the same of the mirror image
    crops: Views  # (C, 45): parts that a slightly cropped copy would show
    detail: float  # grey levels; see `hash_image`


def _grid(side: float, *, steps: int) -> list[Box]:
    """Return boxes of a side's length, spread evenly over the image in rows and columns."""
    starts = [(1 - side) * step / (steps - 1) for step in range(steps)]
    return [Box(left, top, left + side, top + side) for top in starts for left in starts]


WHOLE = Box(0, 0, 1, 1)
# A copy that kept 90 to 96 % of each side is at most about 1.5 % off the nearest of these, which the hash tolerates.
CROPS = (*_grid(0.9, steps=4), *_grid(0.95, steps=3))
MIDDLE_SIDE = 224 / 256  # side of the middle square: evaluation sets are cut to 224 pixels like this
NUM_CROPS = len(CROPS) + 1


def hash_image(pixels: NDArray[np.uint8]) -> ImageHashes:
    """Hash an image, (H, W, 3) RGB.

    Its `detail` is the median strength of the frequencies that are hashed. Half of the bits are decided by fainter ones, so
    where it is almost zero the bits say nothing: such images match each other at random, or all at once.
    """
    height, width = pixels.shape[:2]
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    thumbnail = Image.fromarray(pixels).resize(side, Image.Resampling.LANCZOS)
    grey, colour = np.asarray(thumbnail.convert("L"), np.float64), np.asarray(thumbnail.reduce(COLOUR_SHRINK), np.float64)
    square = middle_square(width / height)
    boxes = (WHOLE, square, *CROPS, _middle(square, MIDDLE_SIDE))
    waves, fields = _frequencies(grey, boxes), _colours(colour, boxes)
    views, mirrored = _views(waves, fields), _views(waves[:NUM_FRAMES] * MIRROR, fields[:NUM_FRAMES, :, ::-1])
    detail = float(np.median(np.abs(waves[0]))) * 4 / VIEW_SIDE**2
    return ImageHashes(frames=views[:NUM_FRAMES], mirrored=mirrored, crops=views[NUM_FRAMES:], detail=detail)


def middle_square(aspect: float) -> Box:
    """Return the largest square in the middle of an image of this width to height."""
    width, height = (1 / aspect, 1.0) if aspect > 1 else (1.0, aspect)
    return Box((1 - width) / 2, (1 - height) / 2, (1 + width) / 2, (1 + height) / 2)


def _middle(box: Box, side: float) -> Box:
    x, y = (1 - side) / 2 * (box.right - box.left), (1 - side) / 2 * (box.bottom - box.top)
    return Box(box.left + x, box.top + y, box.right - x, box.bottom - y)


def _views(waves: NDArray[np.float64], fields: NDArray[np.float64]) -> Views:
    flat = waves.reshape(len(waves), -1)
    bits = np.packbits(flat > np.median(flat, axis=1, keepdims=True), axis=1)
    return np.concatenate([bits, fields.reshape(len(fields), -1).round().astype(np.uint8)], axis=1)


def _frequencies(grey: NDArray[np.float64], boxes: tuple[Box, ...]) -> NDArray[np.float64]:
    """Return the lowest frequencies of parts of a thumbnail, (B, 12, 12), vertical ones first."""
    down = np.stack([_cosines(box.top, box.bottom) for box in boxes])
    across = np.stack([_cosines(box.left, box.right) for box in boxes])
    return (down.reshape(-1, len(grey)) @ grey).reshape(down.shape) @ across.swapaxes(1, 2)


def _colours(colour: NDArray[np.float64], boxes: tuple[Box, ...]) -> NDArray[np.float64]:
    """Return the mean colours of the fields of parts of a thumbnail, (B, 3, 3, 3)."""
    down = np.stack([_means(box.top, box.bottom) for box in boxes])
    across = np.stack([_means(box.left, box.right) for box in boxes])
    rows = (down.reshape(-1, len(colour)) @ colour.reshape(len(colour), -1)).reshape(len(boxes), COLOUR_SIDE, -1, 3)
    return across[:, None] @ rows


@functools.lru_cache(maxsize=4096)  # sides repeat, because an image set's aspect ratios do
def _cosines(start: float, end: float) -> NDArray[np.float64]:
    """Return the matrix, (12, 128), that maps a side of the thumbnail to the frequencies of the part between two fractions.

    It is Pillow's resizing of the part to `VIEW_SIDE` pixels, then the type-II discrete cosine transform.
    """
    resizing = _resizing(THUMBNAIL_SIDE, VIEW_SIDE, start, end, Image.Resampling.LANCZOS)
    return np.cos(np.pi / VIEW_SIDE * np.outer(np.arange(HASH_SIDE), np.arange(VIEW_SIDE) + 0.5)) @ resizing


@functools.lru_cache(maxsize=4096)
def _means(start: float, end: float) -> NDArray[np.float64]:
    return _resizing(THUMBNAIL_SIDE // COLOUR_SHRINK, COLOUR_SIDE, start, end, Image.Resampling.BOX)


def _resizing(side: int, new_side: int, start: float, end: float, how: Image.Resampling) -> NDArray[np.float64]:
    """Return Pillow's resizing of part of a side, as a matrix, (new_side, side)."""
    unit = Image.fromarray(np.eye(side, dtype=np.float32))
    resized = unit.resize((side, new_side), how, box=(0, start * side, side, end * side))
    return np.asarray(resized, np.float64)
