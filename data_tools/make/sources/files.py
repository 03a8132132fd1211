"""Recognise image files by name or first bytes, and by name the files that systems leave behind."""

from __future__ import annotations

import os

from pipeline.data.shards.sample import IMAGE_EXTENSIONS

# other endings of formats that are read, and the ending that the image is stored with
ALIASES = {
    "jfif": "jpg", "jpe": "jpg", "jif": "jpg", "pjpeg": "jpg", "pjp": "jpg", "apng": "png",
    "pgm": "ppm", "pbm": "ppm", "pnm": "ppm", "dib": "bmp",
}  # fmt: skip
SIGNATURES = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"II*\x00": "tif",
    b"MM\x00*": "tif",
}
BMP_HEADER_BYTES = (12, 40, 52, 56, 64, 108, 124)
SIGNATURE_BYTES = 18
UNFINISHED = ("~", ".bak", ".tmp", ".temp", ".part", ".crdownload", ".download", ".swp")
# Systems, file servers and programs write these, not people.
JUNK = frozenset(
    {
        "__macosx",
        "@eadir",
        "lost+found",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
        "$recycle.bin",
        "#recycle",
        "@recycle",
        "@recently-snapshot",
        "system volume information",
        "__pycache__",
        "network trash folder",
        "temporary items",
    }
)


def is_junk(name: str) -> bool:
    """Return whether a file or folder is hidden, or a leftover of a system (`__MACOSX`, `@eaDir`, `Thumbs.db`, `._x.jpg`)."""
    return name.startswith(".") or name.lower() in JUNK


def extension_of(name: str) -> str:
    """Return a name's ending in lower case; "" if it has none."""
    return os.path.splitext(name)[1].removeprefix(".").lower()


def image_extension(name: str) -> str | None:
    """Return the extension that an image of this name is stored with; None if the name does not end like an image."""
    extension = extension_of(name)
    extension = ALIASES.get(extension, extension)
    return extension if extension in IMAGE_EXTENSIONS else None


def find_image_extension(path: str) -> str | None:
    """Return the same, by the file's first bytes where its name does not end like an image; None if it is not an image.

    Raises:
        OSError: it cannot be read.
    """
    if (known := image_extension(path)) is not None or is_unfinished(path):
        return known
    with open(path, "rb") as file:
        return sniff_named(file.read(SIGNATURE_BYTES), path)


def is_unfinished(name: str) -> bool:
    """Return whether a file's name ends like those of downloads in progress and backups."""
    return name.lower().endswith(UNFINISHED)


def sniff_named(data: bytes, name: str) -> str | None:
    """Return an image's extension by its first bytes, where its name does not give it.

    Raw files of cameras begin like TIFF files.
    """
    found = sniff_image(data)
    return None if found == "tif" and extension_of(name) else found


def sniff_image(data: bytes) -> str | None:
    """Return an encoded image's extension by its first bytes; None if they are not those of an image."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in BMP_HEADER_BYTES:
        return "bmp"
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3].isspace() and data[3:4].isdigit():
        return "ppm"
    return next((extension for start, extension in SIGNATURES.items() if data.startswith(start)), None)
