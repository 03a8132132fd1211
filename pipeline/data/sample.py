"""What the members of a sample are: its image and its label."""

from __future__ import annotations

import json

from pipeline.data.tar import TarMember, TarSample
from pipeline.errors import DataError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "tif", "tiff", "gif")
LABEL_EXTENSIONS = ("cls", "json")


def find_member(sample: TarSample, extensions: tuple[str, ...]) -> TarMember | None:
    """The member with the first of these extensions that the sample has; `seg.jpg` is not `jpg`."""
    by_extension = {member.extension: member for member in sample.members}
    return next((by_extension[extension] for extension in extensions if extension in by_extension), None)


def parse_label(text: bytes, *, shard: str, key: str) -> int:
    """A class number: a number in ASCII, or JSON that is a number or has one under `label`.

    Raises:
        DataError: anything else.
    """
    try:
        value = json.loads(text)
        return int(value["label"] if isinstance(value, dict) else value)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        shown = text[:40].decode(errors="replace")
        raise DataError(f"{shard}: label of sample {key!r} is {shown!r}, not a class number") from error
