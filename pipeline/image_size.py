"""Read an image's size in pixels as settings and headers write it: one number for a square, or height and width."""

from __future__ import annotations

ImageSize = int | tuple[int, int]


def height_and_width(size: ImageSize) -> tuple[int, int]:
    """Both sides, the height first."""
    return (size, size) if isinstance(size, int) else size


def image_size(height: int, width: int) -> ImageSize:
    """One number where both sides are equal."""
    return height if height == width else (height, width)


def describe_size(size: ImageSize) -> str:
    """In words: `224 px`, or `224 x 160 px` (height x width)."""
    height, width = height_and_width(size)
    return f"{height} px" if height == width else f"{height} x {width} px"
