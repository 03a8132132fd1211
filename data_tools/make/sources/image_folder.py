"""List images in folders of their classes, the layout of ImageNet: ROOT/CLASS/any/depth/image.jpg."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_tools.make.sources.files import find_image_extension, is_junk
from data_tools.make.sources.listing import Listing, Member
from data_tools.make.sources.listing_builder import ListingBuilder
from data_tools.make.sources.parts import list_parts
from data_tools.parallel import Workers
from data_tools.splits import numbered_parts, parse_split, split_of, splits_among_classes
from pipeline.data.shards.sample import IMAGE_EXTENSIONS
from pipeline.data.stand_ins import POINTER_BYTES, refuse_stand_in
from pipeline.errors import DataError

PACKED = (".tar", ".parquet", ".arrow")


class ClassFolder(NamedTuple):
    """Names a class folder and the number of its class."""

    name: str
    label: int


class _Look(NamedTuple):
    """Lists what lies directly in a folder."""

    num_folders: int
    num_images: int
    num_packed: int  # number of tars and tables


def sort_classes(names: Collection[str]) -> list[str]:
    """Sort class names in the order of their ids: alphabetically, and numbers by their value."""
    are_numbers = all(name.isdecimal() and name.isascii() for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if are_numbers else sorted(names)


def list_image_folder(root: Path, *, workers: Workers) -> Listing:
    """Return every image of every class folder. Classes are the folders that hold an image, sorted.

    Hidden names and those that systems leave behind (`__MACOSX`, `Thumbs.db`) are neither images nor classes. Links to files
    are followed, links to folders are not.

    Raises:
        DataError: no images.
    """
    with os.scandir(root) as found:
        entries = sorted((entry for entry in found if not is_junk(entry.name)), key=lambda entry: entry.name)
    folders = sort_classes([entry.name for entry in entries if entry.is_dir()])
    tasks = [ClassFolder(name, label) for label, name in enumerate(folders)]
    listing = list_parts(
        partial(_list_class, str(root)), tasks, workers=workers, description="list class folders", unit="folder"
    )
    if not len(listing):
        raise DataError(
            f"{root}: no images in its {len(folders)} class folders (looked for {', '.join(IMAGE_EXTENSIONS)}); a folder "
            f"that holds tars, Parquet files or CIFAR batches, or a CSV file, must be given itself"
        )
    files = tuple(entry.name for entry in entries if not entry.is_dir())
    return drop_empty_classes(
        replace(
            listing,
            classes=tuple(folders),
            passed_over=listing.passed_over + len(files),
            first_passed_over=files + listing.first_passed_over,
        )
    )


def drop_empty_classes(listing: Listing) -> Listing:
    """Drop folders or tars without an image: they are not classes. The others are numbered without them."""
    classes = listing.classes or ()
    counts = np.bincount(listing.labels, minlength=len(classes))
    kept = [name for name, count in zip(classes, counts, strict=True) if count]
    empty = tuple(name for name, count in zip(classes, counts, strict=True) if not count)
    return replace(listing.relabel(np.cumsum(counts > 0) - 1, kept), empty_classes=listing.empty_classes + empty)


def check_class_folders(root: Path, *, known: Collection[str]) -> None:
    """Refuse folders that are splits, or only one folder on the way to the classes.

    Args:
        known: names that the user gives as classes: these are classes, whatever they are called.

    Raises:
        DataError: the message names what to give instead.
    """
    with os.scandir(root) as found:
        names = sort_classes([entry.name for entry in found if entry.is_dir() and not is_junk(entry.name)])
    unknown = [name for name in names if name not in known]
    splits = splits_among_classes(unknown) if len(unknown) == len(names) or len(unknown) > 1 else []
    if not splits:
        splits = [name for name in unknown if parse_split(name) is not None and _holds_classes(root, name, names)]
    if splits:
        looks = {name: _look(root / name) for name in splits}
        shown = ", ".join(f"{name}/ ({_describe(look)})" for name, look in looks.items())
        others = f" and {len(names) - len(splits)} other folders" if len(names) > len(splits) else ""
        raise DataError(
            f"source '{root}' holds the splits {shown}{others}; splits are no classes. {_advise(root, looks)}. If they are "
            "classes, name them in a --classes file"
        )
    if parts := numbered_parts(unknown):
        raise DataError(
            f"source '{root}' holds numbered parts, {parts[0]}/ and others, which are no classes: put what they hold together, "
            "or give a CSV of their images and labels. If they are classes, name them in a --classes file"
        )
    if len(unknown) == 1 and len(names) == 1:
        if num_loose := _look(root).num_images:
            raise DataError(
                f"source '{root}' holds a single folder, {names[0]}/, and {num_loose} images next to it, so folders are no "
                f"classes here: give a CSV of the images and their labels, or name {names[0]} in a --classes file if it is the "
                "only class"
            )
        look = _look(root / names[0])
        if look.num_folders > 1 and not look.num_images:
            raise DataError(
                f"source '{root}' holds a single folder, {names[0]}/, with {look.num_folders} folders in it; give "
                f"{root / names[0]} if these are the classes, or name {names[0]} in a --classes file if it is the only class"
            )


def _holds_classes(root: Path, name: str, names: list[str]) -> bool:
    """Return whether a folder named like a split holds folders alone, unlike those next to it, which hold images or nothing."""
    look = _look(root / name)
    others = [_look(root / other) for other in names if other != name]
    return look.num_folders > 0 and not look.num_images and all(not other.num_folders or other.num_images for other in others)


def _look(folder: Path) -> _Look:
    with os.scandir(folder) as found:
        entries = [entry for entry in found if not is_junk(entry.name)]
        num_folders = sum(entry.is_dir() for entry in entries)
        files = [entry.path for entry in entries if entry.is_file()]
    num_packed = sum(path.lower().endswith(PACKED) for path in files)
    return _Look(num_folders, sum(_extension(path) is not None for path in files), num_packed)


def _describe(look: _Look) -> str:
    number, unit = next(((n, u) for n, u in zip(look, ("folder", "image", "file"), strict=True) if n), (0, "image"))
    return f"{number} {unit if number == 1 else f'{unit}s'}"


def _advise(root: Path, looks: Mapping[str, _Look]) -> str:
    """Return what to type instead: one of the folders, or a list where they hold images without classes."""
    first = next(iter(looks))
    if full := [name for name, look in looks.items() if look.num_folders or look.num_packed]:
        first = full[0]
        return f"Give one of them, {root / first}, or choose it with --source-split {split_of(first)}"
    lists = {split_of(path.stem): path for path in root.iterdir() if path.suffix.lower() in (".csv", ".tsv")}
    for name in looks:
        if path := lists.get(split_of(name)):
            return (
                f"They hold no class folders; if {path.name} lists the images of {name}, give {path} --image-folder "
                f"{root / name}"
            )
    return f"They hold no class folders; give a CSV of their images and labels, with --image-folder {root / first}"


def _list_class(root: str, folder: ClassFolder) -> Listing:
    builder = ListingBuilder()
    for name, stat in sorted(_files(os.path.join(root, folder.name), f"{folder.name}/"), key=lambda file: file[0]):
        extension = None if stat is None else _extension(os.path.join(root, name))
        if stat is None or extension is None:
            builder.pass_over(name)
        else:
            if stat.st_size in POINTER_BYTES:
                refuse_stand_in(_read_start(os.path.join(root, name)), name=os.path.join(root, name))
            builder.add(name, labels=(folder.label,), members=(Member(extension, 0, 0, stat.st_size),))
            builder.note_time(name, stat.st_mtime_ns)
    return builder.build(layout="files", files=(root,))


def _read_start(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(POINTER_BYTES.stop)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def _extension(path: str) -> str | None:
    try:
        return find_image_extension(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def _files(path: str, prefix: str) -> Iterator[tuple[str, os.stat_result | None]]:
    """Yield names below the root with their sizes and times; None where the name is not a file."""
    with os.scandir(path) as entries:
        for entry in entries:
            if is_junk(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path, f"{prefix}{entry.name}/")
            elif entry.is_file():
                yield prefix + entry.name, entry.stat()
            else:
                yield prefix + entry.name, None
