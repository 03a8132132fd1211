"""Decode encoded bytes to RGB pixels."""

from __future__ import annotations

import io
import warnings

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.images.planes import Box

try:
    from pipeline.data.images import _jpeg  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:  # there was no compiler or no headers of libjpeg-turbo at installation
    _jpeg = None

HOW_TO_BUILD = "install a C compiler and libjpeg-turbo's headers (libjpeg-dev or libjpeg-turbo-devel), then install this again"
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")  # Pillow knows others, one of which starts Ghostscript
MAX_PIXELS = 100_000_000  # a larger image is taken for a decompression bomb
MAX_SCANNED_PIXELS = 32 * MAX_PIXELS  # pixels times scans; each scan passes over the whole image, and encoders write ten or so
JPEG_START = b"\xff\xd8"
START_OF_SCAN = b"\xff\xda\x00"  # the marker, and the upper byte of its length

Pixels = NDArray[np.uint8]  # (H, W, 3)


class UnreadableImage(Exception):  # noqa: N818  (a finding to count, not a failure)
    """Says that one image cannot be decoded. It is substituted by rule, counted and logged: see `streams.train`."""


def decode_image(data: bytes) -> Pixels:
    """Decode to (H, W, 3) uint8 RGB. EXIF orientation is not applied, as in the authors' and all peers' pipelines.

    JPEG goes through libjpeg-turbo (simplejpeg). Images that it refuses, mostly CMYK and harmless irregularities, are retried
    with Pillow, which every other format goes through too.

    Raises:
        UnreadableImage: damaged, truncated, of an unknown format, or too large (`MAX_PIXELS`, `MAX_SCANNED_PIXELS`).
    """
    if data[:2] == JPEG_START:
        pixels = decode_regular_jpeg(data)
        if pixels is not None:
            return pixels
    return _decode_with_pillow(data)


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return height and width of an image that `decode_jpeg_crop` can take, else None."""
    if _jpeg is None or data[:2] != JPEG_START or data.rfind(b"\xff\xd9", max(0, len(data) - 1024)) < 0:
        return None  # no end marker: truncated, which a crop of its upper part would not notice
    try:
        height, width, is_cmyk = _jpeg.read_size(data)
    except ValueError:
        return None
    return None if is_cmyk or _too_large(data, width=width, height=height) else (height, width)


def decode_jpeg_crop(data: bytes, *, box: Box, shrink: int, flip: bool, antialias: bool, out: Pixels) -> bool:
    """Decode the part of a JPEG that a crop needs and resize it into `out`, (3, H, W); False if it is damaged there.

    With `shrink` 1 the pixels are those of decoding it all and cutting; 2, 4 and 8 decode at that part of the size.
    """
    assert _jpeg is not None
    try:
        _jpeg.crop_resize(data, box.top, box.left, box.height, box.width, shrink, out.shape[-1], flip, antialias, out)
    except ValueError:
        return False
    return True


def has_region_decoder() -> bool:
    """Return whether `decode_jpeg_crop` was built."""
    return _jpeg is not None


def entropy_decode(data: bytes) -> None:
    """Undo a JPEG's entropy coding and nothing more: no decoder of whole images is faster.

    Raises:
        UnreadableImage: damaged, or the region decoder is not built.
    """
    try:
        _jpeg.entropy_decode(data)  # pyright: ignore[reportOptionalMemberAccess]
    except (ValueError, AttributeError) as error:
        raise UnreadableImage(str(error)) from error


def decode_regular_jpeg(data: bytes) -> Pixels | None:
    """Return the pixels of a JPEG without any irregularity; None for CMYK and where the library gives any warning.

    Raises:
        UnreadableImage: too large.
    """
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError):  # KeyError: a chroma sampling without a name, 4:4:1 for example
        return None
    if colorspace in ("CMYK", "YCCK"):
        return None
    _check_size(data, int(width), int(height))
    try:
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None  # strict about every warning, for example of stray bytes between markers


def _decode_with_pillow(data: bytes) -> Pixels:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of harmless metadata, and of sizes below our own limit
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(data, *image.size)
                return to_rgb(image)
    except (UnreadableImage, MemoryError):  # MemoryError says nothing of the image: other ranks may be able to decode it
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image) -> Pixels:
    """Return the pixels of an image of any mode, as `decode_image` makes them.

    Raises:
        UnreadableImage: floating-point pixels.
    """
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels, whose range is not known")
    if not image.mode.startswith("I"):
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))  # converting copies
    # Pillow would clip 16 bits at 255, so they are scaled.
    grey = np.clip(np.asarray(image.convert("I")), 0, 65535)
    return np.repeat(((grey * 255 + 32767) // 65535).astype(np.uint8)[:, :, None], 3, axis=2)


def _check_size(data: bytes, width: int, height: int) -> None:
    if reason := _too_large(data, width=width, height=height):
        raise UnreadableImage(reason)


def _too_large(data: bytes, *, width: int, height: int) -> str | None:
    """Return why decoding would take too much memory or time, or None."""
    if width * height > MAX_PIXELS:
        return f"{width} x {height} pixels, more than {MAX_PIXELS}"
    if data[:2] == JPEG_START and (scans := data.count(START_OF_SCAN)) * width * height > MAX_SCANNED_PIXELS:
        return f"{scans} scans of {width} x {height} pixels, more than {MAX_SCANNED_PIXELS} in all"
    return None
