"""Images in folders of their classes, the layout of ImageNet: ROOT/CLASS/any/depth/image.jpg."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from data_tools.sources.listing import Listing, ListingBuilder, Member
from data_tools.sources.parts import list_parts
from pipeline.data.sample import IMAGE_EXTENSIONS
from pipeline.errors import DataError


class ClassFolder(NamedTuple):
    """A class folder and the number of its class."""

    name: str
    label: int


def list_image_folder(root: Path, *, num_workers: int) -> Listing:
    """Every image of every class folder; classes are the folders in sorted order.

    Names that begin with a dot are no images and no classes. Links to files are followed, links to folders are not.

    Raises:
        DataError: no images.
    """
    with os.scandir(root) as found:
        entries = [entry for entry in found if not entry.name.startswith(".")]
    classes = sorted(entry.name for entry in entries if entry.is_dir())
    tasks = [ClassFolder(name, label) for label, name in enumerate(classes)]
    listing = list_parts(
        partial(_list_class, str(root)), tasks, num_workers=num_workers, description="list classes", unit="class"
    )  # fmt: skip
    if not len(listing):
        raise DataError(
            f"{root}: no images in its {len(classes)} class folders (looked for {', '.join(IMAGE_EXTENSIONS)}); a folder "
            f"that holds tars, Parquet files or CIFAR batches, or a CSV file, must be given itself"
        )
    return replace(listing, classes=tuple(classes), passed_over=listing.passed_over + len(entries) - len(classes))


def _list_class(root: str, folder: ClassFolder) -> Listing:
    builder = ListingBuilder()
    passed_over = 0
    for name, num_bytes in sorted(_files(os.path.join(root, folder.name), f"{folder.name}/")):
        extension = os.path.splitext(name)[1].removeprefix(".").lower()
        if num_bytes is None or extension not in IMAGE_EXTENSIONS:
            passed_over += 1
        else:
            builder.add(name, labels=(folder.label,), members=(Member(extension, 0, 0, num_bytes),))
    return builder.build(layout="files", files=(root,), passed_over=passed_over)


def _files(path: str, prefix: str) -> Iterator[tuple[str, int | None]]:
    """Names below the root with their sizes; None where it is no file."""
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path, f"{prefix}{entry.name}/")
            elif entry.is_file():
                yield prefix + entry.name, entry.stat().st_size
            else:
                yield prefix + entry.name, None
