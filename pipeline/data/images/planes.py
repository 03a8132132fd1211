"""Operate on an image's planes, (3, H, W) uint8. All augmentation laws consist of these operations.

They are tables, integers and Pillow's own filters, so that the pixels are Pillow's; a test compares each. Nothing changes its
input. Batches lie in memory as planes: Pillow's RGB would cost a copy each way and is slower for everything but its filters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Planes = NDArray[np.uint8]  # (3, H, W)
Table = NDArray[np.uint8]  # (256,): the new value of each value
Fill = tuple[int, int, int]
Interpolation = Literal["nearest", "bilinear", "bicubic"]
Enhancement = Literal["Brightness", "Contrast", "Color", "Sharpness"]
Matrix = tuple[float, float, float, float, float, float]

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_SMOOTH_SUM = 13  # sum of Pillow's kernel SMOOTH: 1 for each neighbour, 5 for the pixel


@dataclass(frozen=True)
class Box:
    """Locates a rectangle of pixels inside an image."""

    top: int
    left: int
    height: int
    width: int


def look_up(planes: Planes, table: Table) -> Planes:
    """Replace each value by its entry in one table."""
    return np.take(table, planes, mode="clip")  # no value is clipped; it spares a check of each


def invert(planes: Planes) -> Planes:
    """Return 255 minus each value."""
    return ~planes


def posterize(planes: Planes, bits: int) -> Planes:
    """Keep the upper `bits` of each value; 8 changes nothing, 0 is black."""
    return planes & np.uint8(256 - (1 << (8 - min(bits, 8))))


def solarize(planes: Planes, threshold: float) -> Planes:
    """Invert each value that is not below the threshold."""
    values = np.arange(256)
    return look_up(planes, np.where(values < threshold, values, 255 - values).astype(np.uint8))


def solarize_add(planes: Planes, addition: int) -> Planes:
    """Add to each value below 128."""
    values = np.arange(256)
    return look_up(planes, np.where(values < 128, np.minimum(values + addition, 255), values).astype(np.uint8))


def blend(degenerate: Planes, planes: Planes, factor: float) -> Planes:
    """Return degenerate + factor (planes - degenerate), clipped and cut to whole numbers: Pillow's `Image.blend`."""
    return np.asarray(Image.blend(_as_image(degenerate), _as_image(planes), factor)).reshape(planes.shape)


def blend_with_level(planes: Planes, level: int, factor: float) -> Planes:
    """Return the `blend` with one grey level; level 0 changes the brightness."""
    values = np.arange(256, dtype=np.float32)
    mixed = np.float32(level) + np.float32(factor) * (values - np.float32(level))
    return look_up(planes, np.clip(mixed, 0, 255).astype(np.uint8))


def grey(planes: Planes) -> NDArray[np.uint8]:
    """Return Pillow's `convert("L")`, (H, W): ITU-R 601-2 luma, rounded."""
    return np.asarray(Image.merge("RGB", [_as_image(plane) for plane in planes]).convert("L"))


def mean_level(level: NDArray[np.uint8]) -> float:
    """Return the mean of a grey image, exactly summed."""
    return int(level.sum(dtype=np.int64)) / level.size


def repeat_grey(level: NDArray[np.uint8]) -> Planes:
    """Map (H, W) to three equal planes."""
    return np.repeat(level[None], 3, axis=0)


def smooth(planes: Planes, *, rounding: Literal["nearest", "down"]) -> Planes:
    """Return the mean of 3 x 3 pixels, the middle counted five times. The border stays. Pillow rounds to the nearest."""
    values = planes.astype(np.uint16)
    total = values[:, :-2] + values[:, 1:-1]
    total += values[:, 2:]
    total = total[:, :, :-2] + total[:, :, 1:-1] + total[:, :, 2:]
    total += values[:, 1:-1, 1:-1] * np.uint16(4)
    if rounding == "nearest":
        total += np.uint16(_SMOOTH_SUM // 2)
    result = planes.copy()
    result[:, 1:-1, 1:-1] = total // np.uint16(_SMOOTH_SUM)
    return result


def enhance(name: Enhancement, planes: Planes, factor: float) -> Planes:
    """Apply Pillow's `ImageEnhance` of this name: a blend with a degenerate image, of which a factor of 1 takes nothing."""
    match name:
        case "Brightness":
            return blend_with_level(planes, 0, factor)
        case "Contrast":
            return blend_with_level(planes, int(mean_level(grey(planes)) + 0.5), factor)
        case "Color":
            return blend(repeat_grey(grey(planes)), planes, factor)
        case _:
            return blend(smooth(planes, rounding="nearest"), planes, factor)


def autocontrast(planes: Planes, *, precision: type[np.float32 | np.float64]) -> Planes:
    """Stretch each plane to 0..255.

    Args:
        precision: precision of the arithmetic: Pillow's is double, TensorFlow's single; results are cut, not rounded.
    """
    return _each(planes, lambda plane: look_up(plane, _stretching(int(plane.min()), int(plane.max()), precision)))


def _stretching(low: int, high: int, precision: type[np.float32 | np.float64]) -> Table:
    values = np.arange(256, dtype=precision)
    if low < high:
        scale = precision(255) / precision(high - low)
        values = np.clip(values * scale + precision(-low) * scale, 0, 255)
    return values.astype(np.uint8)


def equalize(planes: Planes) -> Planes:
    """Make each plane's histogram flat like Pillow's `ImageOps.equalize`. TensorFlow's is the same."""
    return _each(planes, lambda plane: look_up(plane, _flattening(np.array(_as_image(plane).histogram(), np.int64))))


def _flattening(histogram: NDArray[np.int64]) -> Table:
    last = int(histogram[np.flatnonzero(histogram)[-1]])
    step = (int(histogram.sum()) - last) // 255
    if step == 0:
        return np.arange(256, dtype=np.uint8)
    below = np.cumsum(histogram) - histogram
    return np.minimum((below + step // 2) // step, 255).astype(np.uint8)


def warp_matrix(operation: str, *, shear: float, shift: tuple[float, float], centre: float = 0.0) -> Matrix:
    """Return what `affine` takes for ShearX, ShearY, TranslateX or TranslateY.

    Args:
        shear: pixels to a pixel.
        shift: pixels for a translation, in x and in y.
        centre: of the first pixel, where the shear's coordinates count from.
    """
    match operation:
        case "ShearX":
            return (1, shear, -shear * centre, 0, 1, 0)
        case "ShearY":
            return (1, 0, 0, shear, 1, -shear * centre)
        case "TranslateX":
            return (1, 0, shift[0], 0, 1, 0)
        case "TranslateY":
            return (1, 0, 0, 0, 1, shift[1])
        case _:
            raise ValueError(f"{operation} is no warp")


def affine(planes: Planes, matrix: Matrix, *, fill: Fill, interpolation: Interpolation) -> Planes:
    """Apply Pillow's `Image.transform`: output (x, y) shows input (a x + b y + c, d x + e y + f), pixel centres at one half."""
    return _warp(
        planes,
        fill,
        lambda image, level: image.transform(
            image.size, Image.Transform.AFFINE, matrix, _RESAMPLING[interpolation], fillcolor=level
        ),
    )


def rotate(planes: Planes, degrees: float, *, fill: Fill, interpolation: Interpolation) -> Planes:
    """Apply Pillow's `Image.rotate`: counterclockwise about the centre."""
    return _warp(planes, fill, lambda image, level: image.rotate(degrees, _RESAMPLING[interpolation], fillcolor=level))


def gaussian_blur(planes: Planes, radius: float) -> Planes:
    """Apply Pillow's `ImageFilter.GaussianBlur`: three box blurs; the radius is the standard deviation in pixels."""
    return _each(planes, lambda plane: np.asarray(_as_image(plane).filter(ImageFilter.GaussianBlur(radius))))


def _warp(planes: Planes, fill: Fill, change: Callable[[Image.Image, int], Image.Image]) -> Planes:
    return _stack([np.asarray(change(_as_image(plane), level)) for plane, level in zip(planes, fill, strict=True)])


def _each(planes: Planes, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> Planes:
    return _stack([change(plane) for plane in planes])


def _stack(planes: Sequence[NDArray[np.uint8]]) -> Planes:
    return np.stack(planes)


def _as_image(planes: NDArray[np.uint8]) -> Image.Image:
    """Return one grey image of the same memory; planes lie one below the other."""
    width = planes.shape[-1]
    return Image.frombuffer("L", (width, planes.size // width), np.ascontiguousarray(planes), "raw", "L", 0, 1)
