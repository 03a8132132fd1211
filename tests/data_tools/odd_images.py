"""Make images of every kind that real corpora hold, and say what is to be found in each."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms


def picture(mode: str = "RGB", *, width: int = 80, height: int = 60) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def save(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_of_one_colour(width: int, height: int) -> bytes:
    """Make a PNG of one bit a pixel, written without holding its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    row = bytes(1 + -(-width // 8))
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(JPEG)
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(picture(), "JPEG", exif=exif)


def sixteen_bit() -> bytes:
    return save(Image.fromarray(np.random.default_rng(0).integers(256, 2**16, (60, 80)).astype(np.uint16)), "PNG")


JPEG = save(picture(), "JPEG", quality=90)
PNG = save(picture(), "PNG")
SCAN = JPEG.index(b"\xff\xda")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
FRAMES = [picture("P"), picture("P").rotate(90), picture("P").rotate(180)]

ODD: dict[str, tuple[str, bytes, set[str]]] = {
    "plain.jpg": ("jpg", JPEG, set()),
    "plain.png": ("png", PNG, set()),
    "grey.jpg": ("jpg", save(picture("L"), "JPEG"), set()),
    "progressive.jpg": ("jpeg", save(picture(), "JPEG", progressive=True), set()),
    "restarts.jpg": ("jpg", save(picture(), "JPEG", restart_marker_blocks=1), set()),
    "a JPEG inside a JPEG": ("jpg", save(picture(), "JPEG", comment=JPEG), set()),
    "bilevel.png": ("png", save(picture("1"), "PNG"), set()),
    "upright.jpg": ("jpg", rotated(1), set()),
    "no bytes": ("jpg", b"", {"empty"}),
    "zeros": ("jpg", bytes(4096), {"not_an_image"}),
    "a web page": ("jpg", b"\n<!DOCTYPE html><html><body>404</body></html>", {"not_an_image"}),
    "a store's error": ("png", b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', {"not_an_image"}),
    "git-lfs": ("jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", {"not_an_image"}),
    "JSON": ("jpg", b'{"error": "gone"}', {"not_an_image"}),
    "noise": ("jpg", np.random.default_rng(1).bytes(999), {"unknown_format"}),
    "bytes in front": ("jpg", b"\r\n" + JPEG, {"unknown_format"}),
    "half a JPEG": ("jpg", JPEG[: len(JPEG) // 2], {"truncated"}),
    "no end marker": ("jpg", JPEG[:-2], {"truncated"}),
    "part of a JPEG's header": ("jpg", JPEG[:100], {"truncated"}),
    "half a PNG": ("png", PNG[: len(PNG) // 2], {"truncated"}),
    "part of a PNG's header": ("png", PNG[:20], {"truncated"}),
    "half a WebP": ("webp", save(picture(), "WEBP")[:500], {"truncated"}),
    "half a BMP": ("bmp", save(picture(), "BMP")[:500], {"truncated"}),
    "PNG with damaged pixels": ("png", PNG[:200] + bytes(50) + PNG[250:], {"damaged"}),
    "PNG with noise for a header": ("png", PNG[:8] + np.random.default_rng(1).bytes(99), {"damaged"}),
    "bomb, refused by Pillow": ("png", png_of_one_colour(20_000, 20_000), {"bomb"}),
    "bomb, Pillow only warns": ("png", png_of_one_colour(11_000, 10_000), {"bomb"}),
    "bomb by its header": ("jpg", jpeg_claiming(60_000, 60_000), {"bomb"}),
    "CMYK": ("jpg", save(picture("CMYK"), "JPEG"), {"cmyk"}),
    "16 bits": ("png", sixteen_bit(), {"sixteen_bit"}),
    "floating point": ("tiff", save(picture("F"), "TIFF"), {"unknown_format"}),
    "RGBA": ("png", save(picture("RGBA"), "PNG"), {"alpha"}),
    "LA": ("png", save(picture("LA"), "PNG"), {"alpha"}),
    "palette": ("png", save(picture("P"), "PNG"), {"palette"}),
    "palette with a clear colour": ("png", save(picture("P"), "PNG", transparency=3), {"palette", "alpha"}),
    "animated": ("gif", save(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), {"multi_frame", "palette"}),
    "upside down": ("jpg", rotated(3), {"exif_orientation"}),
    "orientation 0": ("jpg", rotated(0), {"exif_orientation"}),
    "profile": ("jpg", save(picture(), "JPEG", icc_profile=SRGB), {"icc_profile"}),
    "no profile at all": ("jpg", save(picture(), "JPEG", icc_profile=b"nonsense" * 40), {"icc_profile"}),
    "PNG named .jpg": ("jpg", PNG, {"other_format"}),
    "WebP named .jpeg": ("jpeg", save(picture(), "WEBP"), {"other_format"}),
    "bytes behind": ("jpg", JPEG + b"more", {"trailing_bytes"}),
    "end marker lost": ("jpg", JPEG[:-2] + bytes(400), {"no_end_marker", "irregular_jpeg"}),
    "junk between markers": ("jpg", JPEG[:SCAN] + b"junk" + JPEG[SCAN:], {"irregular_jpeg"}),
    "thin": ("png", save(picture(width=900, height=40), "PNG"), {"extreme_aspect_ratio"}),
    "small": ("png", save(picture(width=30, height=40), "PNG"), {"tiny"}),
    "one pixel": ("png", save(picture(width=1, height=1), "PNG"), {"tiny", "one_colour"}),
    "blank": ("png", save(Image.new("RGB", (64, 64), (9, 8, 7)), "PNG"), {"one_colour"}),
}  # fmt: skip
