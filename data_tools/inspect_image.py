"""Find what is odd about one encoded image: why it cannot be decoded, or what a person should know of one that can."""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageCms

from pipeline.data.images.decode import FORMATS, MAX_PIXELS, Pixels, UnreadableImage, decode_image, decode_regular_jpeg
from pipeline.data.stand_ins import STAND_INS

ORIENTATION = 0x0112  # EXIF tag
BITS_PER_SAMPLE = 258  # TIFF tag
EXTREME_ASPECT_RATIO = 5.0
TINY_PX = 32  # shorter side
FLAT_DEVIATION = 2.0  # standard deviation of each channel, of 255

JPEG_START = b"\xff\xd8"
SIGNATURES = {  # formats that `decode_image` reads
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "GIF": re.compile(rb"GIF8[79]a"),
    "WebP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "BMP": re.compile(rb"BM.{4}\0{4}", re.DOTALL),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
}
OTHERS = {  # formats that are found under an image's name now and then
    **STAND_INS,
    "JSON": re.compile(rb'\s*[{\[]\s*["{\[\]}]'),
    "PDF": re.compile(rb"%PDF-"),
    "gzip": re.compile(rb"\x1f\x8b\x08"),
    "a zip archive": re.compile(rb"PK\x03\x04"),
    "an MP4 or QuickTime film": re.compile(rb"....ftyp(isom|mp4|qt|M4V)", re.DOTALL),
}
UNKNOWN = {
    "HEIC": re.compile(rb"....ftyp(hei|mif|hev)", re.DOTALL),
    "JPEG XL": re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "),
    "SVG": re.compile(rb"\s*<svg", re.IGNORECASE),
}
FIRST_BYTES = 512


class Finding(NamedTuple):
    """Names one fact found out about a sample."""

    kind: str
    reason: str


@dataclass(frozen=True)
class Header:
    """Holds what an image's header says."""

    format: str
    mode: str
    width: int
    height: int


def read_header(data: bytes) -> Header | None:
    """Return an image's header, from its first bytes; None where they do not hold one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return Header(image.format or "", image.mode, *image.size)
    except Exception:  # Pillow's parsers raise almost anything on damaged files; the caller counts them
        return None


def inspect_image(data: bytes, *, extension: str) -> list[Finding]:
    """Decode an image as training does. A finding of a kind in `UNDECODABLE` is then the only one.

    Args:
        extension: ending of its name, in lower case.
    """
    complaint = None
    try:
        pixels = decode_regular_jpeg(data) if data.startswith(JPEG_START) else None
        if pixels is None:
            pixels = decode_image(data)
            complaint = _jpeg_complaint(data)
    except UnreadableImage as error:
        return [_explain(data, str(error))]
    found = [*_header_findings(data, extension), *_size_findings(pixels)]
    if complaint is not None:
        found.append(Finding("irregular_jpeg", complaint))
    return found


def _jpeg_complaint(data: bytes) -> str | None:
    if not data.startswith(JPEG_START):
        return None
    try:
        simplejpeg.decode_jpeg(data, "RGB")
    except ValueError as error:
        return str(error)
    return None


def _explain(data: bytes, reason: str) -> Finding:
    """Return why an image cannot be decoded."""
    if not data:
        return Finding("empty", "no bytes")
    if not data.strip(b"\0"):
        return Finding("not_an_image", f"{len(data)} zero bytes")
    start = data[:FIRST_BYTES]
    if other := _match(OTHERS, start):
        return Finding("not_an_image", other)
    name = _match(SIGNATURES, start)
    if name is None:
        return Finding("unknown_format", _describe_unknown(start))
    if "floating-point" in reason:
        return Finding("unknown_format", f"{name}: {reason}")
    num_pixels = _pixels_in_header(data)
    if num_pixels is not None and num_pixels > MAX_PIXELS:
        return Finding("bomb", reason.partition(": ")[2] or reason)
    if "cannot identify" in reason:
        reason = "its header cannot be read"
    is_short = _is_cut_short(data, name) or "truncated" in reason.lower() or reason.startswith("EOFError")
    return Finding("truncated" if is_short else "damaged", f"{name}: {reason}")


def _match(patterns: dict[str, re.Pattern[bytes]], start: bytes) -> str | None:
    return next((name for name, pattern in patterns.items() if pattern.match(start)), None)


def _describe_unknown(start: bytes) -> str:
    if name := _match(UNKNOWN, start):
        return name
    later = start.find(b"\xff\xd8\xff")
    inside = f"; a JPEG begins at byte {later}" if later > 0 else ""
    return f"begins with {start[:8].hex(' ')}{inside}"


def _pixels_in_header(data: bytes) -> int | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return image.width * image.height
    except Image.DecompressionBombError:
        return MAX_PIXELS + 1
    except Exception:  # see `read_header`
        return None


def _is_cut_short(data: bytes, name: str) -> bool:
    if name == "JPEG":
        return jpeg_end(data) is None
    if name == "PNG":
        return b"IEND" not in data and data[12:16] in (
            b"IHDR",
            data[12:],
        )  # what follows the signature is a chunk, or its start
    if name == "WebP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if name == "BMP":
        return int.from_bytes(data[2:6], "little") > len(data)
    return False


def jpeg_end(data: bytes) -> int | None:
    """Return the offset behind a JPEG's end marker; None where it has none. Thumbnails inside it have markers of their own."""
    values = np.frombuffer(data, np.uint8)
    offsets = np.flatnonzero(values[:-1] == 0xFF)
    codes = values[offsets + 1]
    is_segment = (codes > 0x01) & (codes < 0xFF) & ((codes < 0xD0) | (codes > 0xD8))  # the others have no length
    end_of_segment = len(JPEG_START)
    for offset in offsets[is_segment].tolist():
        if offset < end_of_segment:
            continue
        if values[offset + 1] == 0xD9:
            return offset + 2
        end_of_segment = offset + 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
    return None


def _header_findings(data: bytes, extension: str) -> Iterator[Finding]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                yield from _colour_findings(image, data)
                yield from _structure_findings(image, data, extension)
                yield from _orientation_findings(image)
        except MemoryError:
            raise
        except Exception as error:  # see `read_header`; its pixels could be decoded
            yield Finding("odd_metadata", f"{type(error).__name__}: {error}")
    for warning in caught:
        kind = "huge" if issubclass(warning.category, Image.DecompressionBombWarning) else "odd_metadata"
        yield Finding(kind, str(warning.message))


def _colour_findings(image: Image.Image, data: bytes) -> Iterator[Finding]:
    if image.mode == "CMYK":
        yield Finding("cmyk", image.mode)
    depth = _bits_per_channel(image, data)
    if depth > 8:
        yield Finding("sixteen_bit", f"{depth} bits a channel, {image.mode}: scaled to 8")
    if image.has_transparency_data:
        yield Finding("alpha", f"{image.mode}: transparent pixels show the colour stored beneath")
    if image.mode in ("P", "PA"):
        yield Finding("palette", image.mode)
    if profile := image.info.get("icc_profile"):
        yield Finding("icc_profile", _profile_name(profile))


def _bits_per_channel(image: Image.Image, data: bytes) -> int:
    if image.format == "PNG":
        return data[24]  # in the IHDR chunk, which comes first
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))))  # pyright: ignore[reportAttributeAccessIssue]
    return 32 if image.mode == "I" else 16 if image.mode.startswith("I;16") else 8


@functools.lru_cache(maxsize=256)
def _profile_name(profile: bytes) -> str:
    try:
        return ImageCms.getProfileDescription(io.BytesIO(profile)).strip()  # pyright: ignore[reportArgumentType]
    except (ImageCms.PyCMSError, OSError) as error:
        return f"{len(profile)} bytes that are no profile: {error}"


def _structure_findings(image: Image.Image, data: bytes, extension: str) -> Iterator[Finding]:
    expected = Image.registered_extensions().get(f".{extension}")
    if image.format != expected and (image.format, expected) != ("MPO", "JPEG"):  # an MPO is a JPEG with more behind it
        yield Finding("other_format", f"{image.format} named .{extension}")
    num_frames = getattr(image, "n_frames", 1) if getattr(image, "is_animated", False) else 1
    if num_frames > 1:
        yield Finding("multi_frame", f"{num_frames} frames, the first is used")
    if data.startswith(JPEG_START):
        end = jpeg_end(data)
        if end is None:
            yield Finding("no_end_marker", "decodes nevertheless")
        elif end < len(data) and image.format != "MPO":
            yield Finding("trailing_bytes", f"end marker at byte {end} of {len(data)}")


def _orientation_findings(image: Image.Image) -> Iterator[Finding]:
    # For a PNG without EXIF in front, Pillow would decode all of it to look behind the pixels.
    if image.format == "PNG" and "exif" not in image.info:
        return
    orientation = image.getexif().get(ORIENTATION, 1)
    if orientation != 1:
        is_valid = orientation in range(2, 9)
        meaning = "viewers turn or mirror it, training does not" if is_valid else "no such value, without effect"
        yield Finding("exif_orientation", f"{orientation}: {meaning}")


def _size_findings(pixels: Pixels) -> Iterator[Finding]:
    height, width = pixels.shape[:2]
    shorter, longer = sorted((height, width))
    if longer > EXTREME_ASPECT_RATIO * shorter:
        yield Finding("extreme_aspect_ratio", f"{width} x {height}")
    if shorter < TINY_PX:
        yield Finding("tiny", f"{width} x {height}")
    if _is_flat(pixels, step=max(1, shorter // 16)) and _is_flat(pixels, step=max(1, shorter // 128)):
        colour = np.median(pixels[:: max(1, shorter // 16), :: max(1, shorter // 16)], axis=(0, 1)).astype(int)
        yield Finding("one_colour", f"nearly every pixel is {tuple(colour.tolist())}")


def _is_flat(pixels: Pixels, *, step: int) -> bool:
    """Return whether every `step`-th pixel has nearly the same colour."""
    return float(pixels[::step, ::step].std(axis=(0, 1)).max()) < FLAT_DEVIATION
