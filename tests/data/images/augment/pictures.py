"""Make images for operations: every value occurs, edges are sharp, neighbours resemble each other, planes differ."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image


def picture(number: int, *, height: int = 61, width: int = 47) -> np.ndarray:
    """Make (3, H, W) uint8: waves, a block of noise and a flat corner. The seventh is dark and the eighth has one colour."""
    generator = np.random.default_rng(number)
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(y / (5 + number) + x / 9), np.cos(x / (4 + number)), np.sin((x - y) / 7)])
    planes = np.round(127.5 + 127.5 * waves).astype(np.uint8)
    planes[:, height // 2 :, width // 2 :] = generator.integers(0, 256, (3, height - height // 2, width - width // 2))
    planes[:, :9, :9] = generator.integers(0, 256, (3, 1, 1))
    if number == 6:
        planes //= 5
    if number == 7:
        planes[:] = np.array([12, 200, 77])[:, None, None]
    return planes


def as_image(planes: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))


def as_planes(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)


PICTURES = [pytest.param(number, id=f"picture{number}") for number in range(8)]
