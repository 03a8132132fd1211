"""List images in folders of their classes, the layout of ImageNet: ROOT/CLASS/any/depth/image.jpg, on a disk or in a store."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from data_tools.make.sources.concatenate import concatenate
from data_tools.make.sources.files import (
    extension_of,
)
from data_tools.make.sources.listing import Listing, Member
from data_tools.make.sources.listing_builder import ListingBuilder
from data_tools.make.sources.parts import list_parts
from data_tools.make.sources.stored import Entry, file_stem, find_extension, join, list_visible, read_stored
from data_tools.parallel import Workers
from data_tools.splits import numbered_parts, parse_split, split_of, splits_among_classes
from pipeline.console.progress import track
from pipeline.data.shards.folder import CONCURRENT_QUESTIONS, is_remote
from pipeline.data.shards.sample import IMAGE_EXTENSIONS
from pipeline.data.shards.web import is_web
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


def list_image_folder(root: str, *, workers: Workers) -> Listing:
    """Return every image of every class folder. Classes are the folders that hold an image, sorted.

    Hidden names and those that systems leave behind (`__MACOSX`, `Thumbs.db`) are neither images nor classes. Links to files
    are followed, links to folders are not. A file whose name does not end like an image's is recognised by its first bytes; in
    a store these are a request, so only a file without any ending is looked into there.

    Args:
        root: a path or URL.

    Raises:
        DataError: no images.
    """
    entries = _visible(root)
    folders = sort_classes([entry.name for entry in entries if _is_folder(entry)])
    listing = _list_classes(root, [ClassFolder(name, label) for label, name in enumerate(folders)], workers=workers)
    if not len(listing):
        raise DataError(
            f"{root}: no images in its {len(folders)} class folders (looked for {', '.join(IMAGE_EXTENSIONS)}); a folder "
            f"that holds tars, Parquet files or CIFAR batches, or a CSV file, must be given itself"
        )
    files = tuple(entry.name for entry in entries if not _is_folder(entry))
    return drop_empty_classes(
        replace(
            listing,
            classes=tuple(folders),
            passed_over=listing.passed_over + len(files),
            first_passed_over=files + listing.first_passed_over,
        )
    )


def _list_classes(root: str, tasks: Sequence[ClassFolder], *, workers: Workers) -> Listing:
    list_class = partial(_list_class, root)
    if not is_remote(root):
        return list_parts(list_class, tasks, workers=workers, description="list class folders", unit="folder")
    # A store's answers take time and no processor. Of a web server each folder asks many questions at once by itself.
    with ThreadPoolExecutor(1 if is_web(root) else CONCURRENT_QUESTIONS) as pool:
        parts = [pool.submit(list_class, task) for task in tasks]
        return concatenate([part.result() for part in track(parts, description="list class folders", unit="folder")])


def _visible(folder: str) -> list[Entry]:
    return sorted(list_visible(folder), key=lambda entry: entry.name)


def _is_folder(entry: Entry) -> bool:
    return entry.kind in ("folder", "link to a folder")


def drop_empty_classes(listing: Listing) -> Listing:
    """Drop folders or tars without an image: they are not classes. The others are numbered without them."""
    classes = listing.classes or ()
    counts = np.bincount(listing.labels, minlength=len(classes))
    kept = [name for name, count in zip(classes, counts, strict=True) if count]
    empty = tuple(name for name, count in zip(classes, counts, strict=True) if not count)
    return replace(listing.relabel(np.cumsum(counts > 0) - 1, kept), empty_classes=listing.empty_classes + empty)


def check_class_folders(root: str, *, known: Collection[str]) -> None:
    """Refuse folders that are splits, or only one folder on the way to the classes.

    Args:
        known: names that the user gives as classes: these are classes, whatever they are called.

    Raises:
        DataError: the message names what to give instead.
    """
    names = sort_classes([entry.name for entry in _visible(root) if _is_folder(entry)])
    unknown = [name for name in names if name not in known]
    splits = splits_among_classes(unknown) if len(unknown) == len(names) or len(unknown) > 1 else []
    if not splits:
        splits = [name for name in unknown if parse_split(name) is not None and _holds_classes(root, name, names)]
    if splits:
        looks = {name: _look(join(root, name)) for name in splits}
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
        look = _look(join(root, names[0]))
        if look.num_folders > 1 and not look.num_images:
            raise DataError(
                f"source '{root}' holds a single folder, {names[0]}/, with {look.num_folders} folders in it; give "
                f"{join(root, names[0])} if these are the classes, or name {names[0]} in a --classes file if it is the only "
                "class"
            )


def _holds_classes(root: str, name: str, names: list[str]) -> bool:
    """Return whether a folder named like a split holds folders alone, unlike those next to it, which hold images or nothing."""
    look = _look(join(root, name))
    others = [_look(join(root, other)) for other in names if other != name]
    return look.num_folders > 0 and not look.num_images and all(not other.num_folders or other.num_images for other in others)


def _look(folder: str) -> _Look:
    entries = _visible(folder)
    files = [entry for entry in entries if entry.kind == "file"]
    num_packed = sum(file.name.lower().endswith(PACKED) for file in files)
    num_images = sum(_extension(join(folder, file.name), file.num_bytes) is not None for file in files)
    return _Look(sum(map(_is_folder, entries)), num_images, num_packed)


def _describe(look: _Look) -> str:
    number, unit = next(((n, u) for n, u in zip(look, ("folder", "image", "file"), strict=True) if n), (0, "image"))
    return f"{number} {unit if number == 1 else f'{unit}s'}"


def _advise(root: str, looks: Mapping[str, _Look]) -> str:
    """Return what to type instead: one of the folders, or a list where they hold images without classes."""
    first = next(iter(looks))
    if full := [name for name, look in looks.items() if look.num_folders or look.num_packed]:
        first = full[0]
        return f"Give one of them, {join(root, first)}, or choose it with --source-split {split_of(first)}"
    lists = {
        split_of(file_stem(entry.name)): entry.name for entry in _visible(root) if extension_of(entry.name) in ("csv", "tsv")
    }
    for name in looks:
        if of_split := lists.get(split_of(name)):
            return (
                f"They hold no class folders; if {of_split} lists the images of {name}, give {join(root, of_split)} "
                f"--image-folder {join(root, name)}"
            )
    return f"They hold no class folders; give a CSV of their images and labels, with --image-folder {join(root, first)}"


def _list_class(root: str, folder: ClassFolder) -> Listing:
    builder = ListingBuilder()
    for name, entry in sorted(_files(join(root, folder.name), f"{folder.name}/"), key=lambda file: file[0]):
        path = join(root, name)
        extension = _extension(path, entry.num_bytes) if entry.kind == "file" else None
        if extension is None:
            builder.pass_over(name)
        else:
            if entry.num_bytes in POINTER_BYTES:
                refuse_stand_in(_read_start(path, min(entry.num_bytes, POINTER_BYTES.stop)), name=path)
            builder.add(name, labels=(folder.label,), members=(Member(extension, 0, 0, entry.num_bytes),))
            builder.note_time(name, entry.version)
    return builder.build(layout="files", files=(root,))


def _read_start(path: str, length: int) -> bytes:
    try:
        return read_stored(path, 0, length)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def _extension(path: str, num_bytes: int) -> str | None:
    try:
        return find_extension(path, num_bytes)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def _files(folder: str, prefix: str) -> Iterator[tuple[str, Entry]]:
    """Yield all that lies in a folder and in folders of it, but for folders, with their names below the root."""
    for entry in list_visible(folder):
        if entry.kind == "folder":
            yield from _files(join(folder, entry.name), f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry
