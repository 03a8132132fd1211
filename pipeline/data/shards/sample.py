"""Find and read the members of a sample: its image and its labels."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from pipeline.data.shards.tar import TarMember, TarSample
from pipeline.errors import DataError
from pipeline.json_text import parse_json

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "tif", "tiff", "gif")
LABEL_EXTENSIONS = ("cls", "json")
MASK_EXTENSIONS = ("seg.png", "mask.png", "seg.tif", "mask.tif")  # class numbers of an image's pixels
MAX_LABEL = 2**31 - 1
MAX_DIGITS = 10  # a number of fewer digits is certainly below the limit
WHOLE_NUMBER = re.compile(rb"[-+]?[0-9]{1,18}")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PACK_AGAIN = (
    "WebDataset cuts names at their first dot, so keys must not hold one: `python -m data_tools make` packs them with others"
)
MAX_LABEL_BYTES = 1 << 20  # a longer member is not a label


class HasMembers(Protocol):
    """Has the members of one key."""

    @property
    def members(self) -> tuple[TarMember, ...]: ...


def find_member(sample: HasMembers, extensions: tuple[str, ...]) -> TarMember | None:
    """Return the member with the first of these extensions that the sample has; `seg.jpg` is not `jpg`."""
    by_extension = {member.extension: member for member in sample.members}
    return next((by_extension[extension] for extension in extensions if extension in by_extension), None)


def parse_labels(text: bytes, *, shard: str, key: str) -> tuple[int, ...]:
    """Return the class numbers of a sample, each once, in their order.

    One label is a whole number in ASCII (7, 007), or JSON that is one or has one under `label` (7, 7.0, "7"). Several are
    JSON with a list under `labels`: {"labels": [3, 7]}. An empty list says that the image shows none of the classes.

    Raises:
        DataError: the text is anything else: a fraction, a name, nothing.
    """
    if text.isdigit() and len(text) < MAX_DIGITS:  # the common case
        return (int(text),)
    try:
        stripped = text.removeprefix(BYTE_ORDER_MARK).strip()
        value = stripped.decode() if WHOLE_NUMBER.fullmatch(stripped) else parse_json(stripped)
        if not isinstance(value, dict) or value.get("labels") is None:
            return (_class_number(value["label"] if isinstance(value, dict) else value),)
        numbers = tuple(dict.fromkeys(_class_number(item) for item in _as_list(value["labels"])))
        if value.get("label") is not None and _class_number(value["label"]) not in numbers:
            raise ValueError("label and labels differ")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        shown = text[:40].decode(errors="replace")
        raise DataError(f"{shard}: label of sample {key!r} is {shown!r}, not a class number") from error
    return numbers


def parse_label(text: bytes, *, shard: str, key: str) -> int:
    """Return the class number of a sample that has one.

    Raises:
        DataError: no class number, or several.
    """
    return only_label(parse_labels(text, shard=shard, key=key), shard=shard, key=key)


def only_label(labels: tuple[int, ...], *, shard: str, key: str) -> int:
    """Return the label of a sample that has one.

    Raises:
        DataError: it has none or several.
    """
    if len(labels) != 1:
        raise DataError(
            f"{shard}: sample {key!r} has {len(labels)} labels, and one is needed here; objective.name=multi_label trains on "
            f"several"
        )
    return labels[0]


def _as_list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(value)
    return value


def _class_number(value: object) -> int:
    if isinstance(value, str) and not WHOLE_NUMBER.fullmatch(value.strip().encode()):
        raise ValueError(value)
    if not isinstance(value, str | int | float):
        raise TypeError(value)
    number = int(value)
    if (isinstance(value, float) and number != value) or abs(number) > MAX_LABEL:
        raise ValueError(value)
    return number


def read_labels(sample: TarSample, read: Callable[[int, int], bytes], *, shard: str) -> tuple[int, ...]:
    """Return the classes of a sample.

    Args:
        read: returns bytes of the tar from a start, of a length.

    Raises:
        DataError: the label is missing or is not a class number.
    """
    member = find_member(sample, LABEL_EXTENSIONS)
    if member is None:
        raise DataError(describe_missing(sample, "label", LABEL_EXTENSIONS, shard=shard))
    if member.length > MAX_LABEL_BYTES:
        raise DataError(f"{shard}: label of sample {sample.key!r} has {member.length} bytes; a class number is short")
    return parse_labels(member.read(read), shard=shard, key=sample.key)


def describe_missing(sample: TarSample, what: str, extensions: tuple[str, ...], *, shard: str) -> str:
    """Return what a sample lacks, in words."""
    found = ", ".join(member.extension for member in sample.members)
    advice = f"; {PACK_AGAIN}" if any(cut_at_last_dot(member.extension)[1] in extensions for member in sample.members) else ""
    return f"{shard}: sample {sample.key!r} has no {what} (looked for {', '.join(extensions)}; it has {found}){advice}"


def cut_at_last_dot(extension: str) -> tuple[str, str]:
    """Split an extension where keys hold dots: `05.jpg` of 22.05.jpg gives `05`, part of the key, and `jpg`."""
    head, _, last = extension.rpartition(".")
    return head, last


def describe_joined(sample: TarSample, *, shard: str) -> str | None:
    """Return why a sample whose keys hold dots is several; None if it is one."""
    extensions = [member.extension for member in sample.members]
    if any(extension in IMAGE_EXTENSIONS for extension in extensions):
        return None
    images = [extension for extension in extensions if cut_at_last_dot(extension)[1] in IMAGE_EXTENSIONS]
    if len({cut_at_last_dot(extension)[0] for extension in images}) < 2:
        return None
    return f"{shard}: sample {sample.key!r} holds {len(images)} images ({', '.join(images[:3])} ...); {PACK_AGAIN}"
