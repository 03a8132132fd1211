"""Encoded bytes to RGB pixels."""

from __future__ import annotations

import io
import warnings

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

MAX_PIXELS = 100_000_000  # above this an image is taken for a decompression bomb

Pixels = NDArray[np.uint8]  # (H, W, 3)


class UnreadableImage(Exception):  # noqa: N818  (a finding to count, not a failure)
    """One image that cannot be decoded. Replaced by rule, counted and logged: see `stream`."""


def decode_image(data: bytes) -> Pixels:
    """Decode to (H, W, 3) uint8 RGB. EXIF orientation is not applied, as in the authors' and all peers' pipelines.

    JPEG goes through libjpeg-turbo (simplejpeg). What that refuses, CMYK and harmless irregularities above all, gets a
    second chance with Pillow, which every other format goes through too.

    Raises:
        UnreadableImage: damaged, cut short, of an unknown format, or of more than `MAX_PIXELS` pixels.
    """
    if data[:2] == b"\xff\xd8":
        pixels = _decode_jpeg(data)
        if pixels is not None:
            return pixels
    return _decode_with_pillow(data)


def _decode_jpeg(data: bytes) -> Pixels | None:
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colorspace in ("CMYK", "YCCK"):
        return None
    _check_size(int(width), int(height))
    try:
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None  # strict about every warning: stray bytes between markers are one


def _decode_with_pillow(data: bytes) -> Pixels:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of harmless metadata, and of sizes below our own limit
            with Image.open(io.BytesIO(data)) as image:
                _check_size(*image.size)
                return np.array(image.convert("RGB"))
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{width} x {height} pixels, more than {MAX_PIXELS}")
